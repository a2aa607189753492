"""The one error a user is meant to read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What went wrong in one line: the file or key, and what to do. The command line prints it without a traceback."""


class SettingError(UserError):
    """A setting that does not fit, by its name within a section: 'net.backbone=resnet81: timm has no such model'.

    A network or a training does not know whose it is; whoever does puts the section's name before it, see `within`.
    """


def no_room(error: object, where: object = "the disk") -> str | None:
    """One line for a full or read-only disk, at the error's file or else `where`.

    None for any other error: that may be of one file alone, and the next one may do.
    """
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return f"{error.filename or where}: {os.strerror(error.errno)}; make room and run the same command again"


def first_line(error: Exception) -> str:
    """What another library's error says first, in 200 characters at most; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def within(section: str) -> Iterator[None]:
    """SettingErrors of the block as UserErrors with the whole key: 'seg.net.backbone=resnet81: ...'."""
    try:
        yield
    except SettingError as error:
        raise UserError(f"{section}.{error}") from error
