"""The exceptions a user can meet; everything else that escapes is a bug in Prevox.

Every message answers four questions: where (file, case or setting), what was found, what was expected, what to do.
"""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # numbers of an OSError that no other file name helps against


class PrevoxError(Exception):
    """Base of all errors that are the input's or the environment's doing; the command line prints no traceback.

    Attributes:
        exit_code: What the command line leaves with.
    """

    exit_code = 2


class ConfigError(PrevoxError, ValueError):
    """A setting is unknown, misspelt, out of range or contradicts another one."""


class DataError(PrevoxError, ValueError):
    """A file, an image or a label map is not what it must be.

    Args:
        where: File or case the message is about.
        found: What was found there.
        expected: What should have been there.
        remedy: What the user can do.
    """

    def __init__(self, where: object, *, found: str, expected: str, remedy: str = "") -> None:
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        super().__init__(f"{where}: found {found}; expected {expected}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[object, ...]:  # raised in a worker process, shown in the parent
        return (_rebuild_data_error, (self.where, self.found, self.expected, self.remedy))


def _rebuild_data_error(where: str, found: str, expected: str, remedy: str) -> DataError:
    return DataError(where, found=found, expected=expected, remedy=remedy)


class RunError(PrevoxError, RuntimeError):
    """A training, prediction or evaluation cannot go on (wrong run folder, unfit checkpoint, stopped by a signal)."""


class NotFiniteError(RunError):
    """Loss, gradient or weights of a training are no longer finite: the same settings would end there again."""

    exit_code = 3
