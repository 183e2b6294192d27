"""Launchers: other machines that a run may be sent to."""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.launchers.local",  # this machine, in the background: the reference of what a launcher does
    "fitune_plugins.launchers.ssh",  # a host that one can log in to
    "fitune_plugins.launchers.sagemaker",  # a training job of Amazon SageMaker AI
    "fitune_plugins.launchers.skypilot",  # a managed job on the clouds that SkyPilot is set up for
)
"""Dotted names of the modules, in the order in which they are loaded."""
