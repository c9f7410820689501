"""The one exception that means "your input, not our bug"."""


class InputError(ValueError):
    """Bad input from the user: a file, a field or a flag.

    The message is one line that names the place, the value and the remedy, for example
    `config: warmup.group_size=1: a group of one has no advantage; use 2 or more`.
    The command line prints it without a traceback and exits with status 2.
    """
