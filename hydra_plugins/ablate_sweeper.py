"""Hydra's door to studies: `python train.py -m experiment=NAME`. What it does stands in ablate.study.sweep."""

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class StudySweeper(Sweeper):
    """Expands a study into runs, and hands them to the launcher that is configured."""

    def setup(self, *, hydra_context, task_function, config):
        self.loader = hydra_context.config_loader
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        from ablate.study.sweep import sweep  # torch takes seconds to import: not at each start of any Hydra command

        def compose(overrides):
            return self.loader.load_sweep_config(self.config, overrides)

        return sweep(self.config, arguments, compose, self.launcher.launch)
