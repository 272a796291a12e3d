"""HTML pages, shared by benchmarks and studies: how they look, how plots and tables are made, how a file is written."""
