from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from relay.log.directory import Directory


class DirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())
        self.directory = Directory.at(self.path)
        self.addCleanup(self.directory.close)

    def write(self, name: str, data: bytes) -> None:
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(data)

    def test_links_are_not_followed(self) -> None:
        """Somebody who can write into the store can't make us read or write elsewhere."""
        victim = self.mktemp()
        with open(victim, "wb") as file:
            file.write(b"precious")
        os.symlink(os.path.abspath(victim), os.path.join(self.path, "link"))
        os.symlink("/", os.path.join(self.path, "root"))
        for act in (
            lambda: self.directory.read("link", 10),
            lambda: self.directory.open("link", os.O_RDWR),
            lambda: self.directory.open("link", os.O_RDWR | os.O_CREAT),
            lambda: self.directory.create("link"),
            lambda: self.directory.subdirectory("root"),
        ):
            with self.assertRaises(OSError):
                act()
        self.directory.write_atomically("link", b"new")
        with open(victim, "rb") as file:
            self.assertEqual(b"precious", file.read())
        self.assertEqual(b"new", self.directory.read("link", 10))

    def test_temporary_file_that_is_a_link_is_not_written_through(self) -> None:
        victim = self.mktemp()
        os.symlink(os.path.abspath(victim), os.path.join(self.path, "meta.tmp"))
        with self.assertRaises(OSError):
            self.directory.write_atomically("meta", b"new")
        self.assertFalse(os.path.exists(victim))

    def test_stat_is_the_links_own(self) -> None:
        os.symlink("/dev/zero", os.path.join(self.path, "link"))
        self.assertEqual(len("/dev/zero"), self.directory.stat("link").st_size)

    def test_create_refuses_what_is_there(self) -> None:
        self.write("file", b"old")
        with self.assertRaises(FileExistsError):
            self.directory.create("file")

    def test_read_is_bounded(self) -> None:
        self.write("file", bytes(100))
        self.assertEqual(10, len(self.directory.read("file", 10)))
        self.assertEqual(100, len(self.directory.read("file", 1000)))

    def test_write_atomically_replaces(self) -> None:
        self.directory.write_atomically("meta", b"old and longer")
        self.directory.write_atomically("meta", b"new")
        self.assertEqual(b"new", self.directory.read("meta", 100))
        self.assertEqual(["meta"], self.directory.names())

    def test_unlink_of_what_is_gone(self) -> None:
        self.directory.unlink("nothing")

    def test_subdirectory(self) -> None:
        with self.assertRaises(FileNotFoundError):
            self.directory.subdirectory("sub", is_made=False)
        sub = self.directory.subdirectory("sub")
        self.addCleanup(sub.close)
        os.close(sub.create("file"))
        with self.assertRaises(OSError):
            self.directory.remove_directory("sub")
        sub.unlink("file")
        self.directory.remove_directory("sub")
        self.assertEqual([], self.directory.names())

    def test_nothing_is_for_the_world(self) -> None:
        self.directory.subdirectory("sub").close()
        os.close(self.directory.create("file"))
        for name in ("sub", "file"):
            self.assertEqual(0, self.directory.stat(name).st_mode & 0o007)

    def test_closed_it_refuses_everything(self) -> None:
        """The number of a closed descriptor may be somebody else's by now."""
        self.directory.close()
        self.directory.close()
        for act in (self.directory.names, lambda: self.directory.unlink("x"), lambda: self.directory.create("x")):
            with self.assertRaises(OSError):
                act()
