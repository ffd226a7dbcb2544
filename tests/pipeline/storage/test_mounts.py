from pathlib import Path

from pipeline.storage.mounts import file_system, is_shared

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:50 / /home/a\040b rw,relatime shared:40 - nfs4 server:/export rw,vers=4.2
91 90 0:51 / /home/a\040b/scratch rw - xfs /dev/sdb rw
92 91 0:52 / /home/a\040b/scratch rw - lustre mds:/work rw
broken line
"""


def test_the_innermost_and_newest_mount_counts() -> None:
    found = {path: file_system(Path(path), MOUNTS) for path in ("/x", "/home/a", "/home/a b/r", "/home/a b/scratch/r")}
    assert found == {"/x": "ext4", "/home/a": "ext4", "/home/a b/r": "nfs4", "/home/a b/scratch/r": "lustre"}
    assert file_system(Path("/x"), "") == ""


def test_a_local_disk_is_not_shared(tmp_path: Path) -> None:
    assert not is_shared(tmp_path / "none")
