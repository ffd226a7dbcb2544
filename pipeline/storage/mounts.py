"""The kind of file system that a path is on: on some that machines share, SQLite must not share memory. Torch-free."""

from pathlib import Path

# Types that Linux lists for file systems of other machines.
SHARED = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "ocfs2",
    "gfs2",
    "pvfs2",
}
_SHARED_FUSE = ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.juicefs", "fuse.mfs")
_MOUNTS = Path("/proc/self/mountinfo")


def is_shared(path: Path) -> bool:
    """Return whether ``path``, which need not exist, is on a file system that other machines may write too."""
    try:
        kind = file_system(path.resolve(), _MOUNTS.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        # Not Linux: nothing is known.
        return False
    return kind in SHARED or kind.startswith(_SHARED_FUSE)


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system of ``path``, by a table of ``/proc/PID/mountinfo``; empty: not there."""
    found, longest = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or not kinds:
            continue
        # The table writes spaces and the like as octal numbers.
        place = Path(fields[4].encode("latin-1", "replace").decode("unicode_escape"))
        # Of mounts at one place, the last one is seen.
        if path.is_relative_to(place) and len(place.parts) >= longest:
            found, longest = kinds[0], len(place.parts)
    return found
