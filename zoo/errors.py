"""Errors that a user can act on: one clear sentence that names the thing and the remedy. The command line prints them without a trace."""


class ZooError(Exception):
    """A fault while running; `exit_code` is what the command line exits with."""

    exit_code = 1


class ConfigError(ZooError):
    """A wrong command line or configuration."""

    exit_code = 2


class NoCheckpointError(ZooError):
    """No checkpoint that could be used."""

    exit_code = 3


class NonFiniteError(ZooError):
    """The loss or the gradients were not finite."""

    exit_code = 4
