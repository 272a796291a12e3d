"""The Hydra plugin behind `python train.py -m experiment=NAME`. The work is done in ablate.study.sweep."""

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class StudySweeper(Sweeper):
    """Expands a study into runs, and hands them to the configured launcher."""

    def setup(self, *, hydra_context, task_function, config):
        self.loader = hydra_context.config_loader
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        from ablate.study.sweep import sweep  # imports torch, which takes seconds; every Hydra command loads this file

        def compose(overrides):
            return self.loader.load_sweep_config(self.config, overrides)

        return sweep(self.config, arguments, compose, self.launcher.launch)
