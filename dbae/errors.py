"""The one exception that reaches a user as a single line."""


class UserError(ValueError):
    """Bad input: the message names what was wrong and what was expected. Scripts print it and exit with status 2."""
