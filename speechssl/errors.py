"""The exceptions that a command turns into one plain sentence."""


class UserError(ValueError):
    """What the user gave is wrong: one plain sentence that says what, where and the mend. The command exits with 2."""


class Interrupted(Exception):
    """A signal asked a run to stop, and it has been saved. The command says how to go on, and exits with 1."""
