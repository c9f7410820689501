"""The exceptions that end a command in one line."""


class InputError(ValueError):
    """Bad input from the user: a file, a field or a flag.

    The message is one line that names the place, the value and the remedy, for example
    `config: warmup.group_size=1: a group of one has no advantage; use 2 or more`.
    The command line prints it without a traceback and exits with status 2.
    """


class Preempted(Exception):
    """A run that ended early because its machine is taken away; says what is saved."""


PREEMPTED = 75
"""Exit status of a run that was preempted, to be started again (EX_TEMPFAIL of sysexits.h)."""
