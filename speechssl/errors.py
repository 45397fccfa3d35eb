"""The one exception for what a user can mend."""


class UserError(ValueError):
    """What the user gave is wrong: one plain sentence that says what, where and the mend. The command exits with 2."""
