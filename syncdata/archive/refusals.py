"""Turns the refusals of a storage into errors for the operator: an OSError gets a code and a hint.

Knows error numbers. An SFTP server sends few of them, and none at all for most refusals.
"""

from __future__ import annotations

import errno

from syncdata.errors import DeliveryError, DiscoveryError, FetchError, RetentionError


def cannot_list(where: str, error: OSError) -> DiscoveryError:
    hint = {
        errno.ENOENT: "check in the configuration that the archive is there",
        errno.ENOTDIR: "check in the configuration that the archive is there",
        errno.EACCES: "give the login read and search permission on the directory",
    }.get(error.errno or 0, "check in the configuration where the archive is, and its disk")
    return DiscoveryError(f"the archive cannot be listed: {_reason(error)}", hint=hint, file=where)


def cannot_watch(where: str, error: Exception) -> DiscoveryError:
    reason = _reason(error) if isinstance(error, OSError) else type(error).__name__
    return DiscoveryError(
        f"the archive cannot be watched: {reason}",
        hint="new files are found at every interval all the same; where the system's limit is reached, raise"
        " it: sysctl fs.inotify.max_user_instances fs.inotify.max_user_watches",
        file=where,
    )


def cannot_read(where: str, error: OSError) -> FetchError:
    hint = {
        errno.ENOENT: "it was there when the archive was listed; put it back",
        errno.EACCES: "give the login read permission on the file: put it into the file's group, or see"
        " archive_file_mode at production",
    }.get(error.errno or 0, "check the archive's disk; the file is fetched again in the next cycle")
    return FetchError(f"the file cannot be read: {_reason(error)}", hint=hint, file=where)


def cannot_put(where: str, directory: str, error: OSError) -> DeliveryError:
    """*directory* is as the archive's own host knows it, so that the hint's commands can be pasted there."""
    return DeliveryError(
        f"the file cannot be written: {_reason(error)}", hint=_write_hint(directory, error), file=where
    )


def cannot_remove(where: str, directory: str, error: OSError) -> RetentionError:
    return RetentionError(
        f"the file cannot be removed: {_reason(error)}", hint=_write_hint(directory, error), file=where
    )


def _write_hint(directory: str, error: OSError) -> str:
    look = f"df -h '{directory}'; df -i '{directory}'"
    return {
        errno.ENOSPC: f"the archive's disk is full; free space or inodes, see: {look}",
        errno.EDQUOT: f"the login's quota is used up; raise it or free space, see: quota; {look}",
        errno.EFBIG: "files of that size are not allowed there; check ulimit -f, or rotate earlier",
        errno.EROFS: f"the archive's disk is read-only; check it, and mount it writable: mount; {look}",
        errno.EACCES: f"give the login write and search permission on '{directory}'",
        errno.EPERM: f"give the login write and search permission on '{directory}'",
        errno.ENOENT: f"check that '{directory}' is there, and its disk mounted",
        errno.ENOTDIR: f"check that '{directory}' is there, and its disk mounted",
    }.get(
        error.errno or 0,
        "the usual cause is a disk or a quota that is full, or a disk that is read-only;"
        f" on the archive's host, check: {look}; quota",
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
