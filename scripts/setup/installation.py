"""Installing: the packages of the lock into .venv, then iChat itself, then what both need before their first use."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from scripts.setup.console import Console, Step
from scripts.setup.environment import Environment, pip_environ
from scripts.setup.jobs import Job, JobFailed, run_jobs
from scripts.setup.lock import Lock, Pin, lock_path, read_lock
from scripts.setup.pip_words import last_lines, pip_progress, pip_trouble
from scripts.setup.stamp import Stamp, fingerprint, read_stamp, remove_stamp, write_stamp
from scripts.setup.trouble import Trouble

SIDE_BY_SIDE = 2
"""So many pips at once: one looks packages up while the other unpacks. Each has packages of its own."""


class Installation:
    """What this checkout wants in its .venv, and how it gets there."""

    def __init__(self, root: Path, console: Console, gpu: bool, dev: bool, environ: Mapping[str, str]) -> None:
        self.environment = Environment(root)
        self._root = root
        self._console = console
        self._lock_path = lock_path(root, gpu)
        self._dev = dev
        self._environ = pip_environ(environ)

    @property
    def wanted(self) -> Stamp:
        return Stamp(fingerprint(self._root, [self._lock_path, self._root / "pyproject.toml"]), self._dev)

    def is_current(self) -> bool:
        stamp = read_stamp(self.environment.folder)
        return stamp is not None and self.environment.python.exists() and stamp.covers(self.wanted)

    def run(self, demo: bool = False) -> None:
        """Install what is missing; with ``demo``, make the demo model too.

        Raises Trouble, and leaves everything so that the next run goes on from there.
        """
        with alone(self._root, self._console):
            if not self.is_current():  # not even by another run, while this one waited
                self._install(demo)
            elif demo:
                self._compute("preparing the demo model", [self._demo_job()])

    def _install(self, demo: bool) -> None:
        lock, wanted, stamp = read_lock(self._lock_path), self.wanted, read_stamp(self.environment.folder)
        dev = self._dev or (stamp is not None and stamp.dev)
        remove_stamp(self.environment.folder)
        self._prepare()
        self._install_packages(lock, dev)
        self._install_ichat()
        # First, alone and on all cores: what comes then imports the packages, and would compile them once more.
        compiling = self._job("compiling", "-m", "scripts.setup.compilation", str(self.environment.site_packages))
        self._compute("compiling the packages", [compiling])
        trying = self._job("trying the engine", "-m", "scripts.setup.engine_check")
        self._compute("preparing the first start", [trying, *([self._demo_job()] if demo else [])])
        write_stamp(self.environment.folder, Stamp(wanted.fingerprint, dev))

    def _compute(self, title: str, jobs: Sequence[Job]) -> None:
        """Side by side: these use neither the network nor each other."""
        several = len(jobs) > 1  # else the title says it all
        with self._console.step(title) as step:
            try:
                run_jobs(
                    jobs,
                    lambda running: step.update(names_of(running) if several else ""),
                    self._environ,
                    self._root,
                )
            except JobFailed as failed:
                raise Trouble(f"{failed.job.name.capitalize()} failed.\n{quote(failed.job)}") from failed
            step.conclude(names_of(jobs) if several else "")

    def _demo_job(self) -> Job:
        return self._job("converting the demo model", "-m", "scripts.setup.demo_model")

    def _job(self, name: str, *argv: str) -> Job:
        self.environment.logs.mkdir(parents=True, exist_ok=True)
        log = self.environment.logs / f"{name.replace(' ', '-')}.log"
        return Job(name, (str(self.environment.python), *argv), log)

    def _prepare(self) -> None:
        environment = self.environment
        if not environment.works():
            with self._console.step(f"making the virtual environment {environment.folder}"):
                environment.create()
        elif mended := environment.mend():
            self._console.say(f"  an earlier installation was cut off; mending {', '.join(mended)}")

    def _install_packages(self, lock: Lock, dev: bool) -> None:
        pins = lock.pins(dev)
        jobs = [self._pip_job(number, pins[number::SIDE_BY_SIDE]) for number in range(SIDE_BY_SIDE)]
        title = f"installing {len(pins)} packages of {self._lock_path.name}"
        self._run_pip(title, jobs, lambda step, running: step.update(self._progress(running, pins)))

    def _install_ichat(self) -> None:
        # setuptools is in the lock: building needs no downloads of its own.
        options = ["--no-deps", "--no-build-isolation", "--no-color", "--editable", str(self._root)]
        job = self._job("installing iChat", "-m", "pip", "install", *options)
        self._run_pip("installing iChat itself", [job], lambda step, _: step.update(""))

    def _run_pip(self, title: str, jobs: Sequence[Job], show: Callable[[Step, Sequence[Job]], None]) -> None:
        with self._console.step(title) as step:
            try:
                run_jobs(jobs, lambda running: show(step, running), self._environ, self._root)
            except JobFailed as failed:
                words = pip_trouble(failed.job.said())
                raise Trouble(f"{words}\n{quote(failed.job)}") from failed
            step.conclude("")

    def _pip_job(self, number: int, pins: Sequence[Pin]) -> Job:
        """The lock is complete, so pip need not resolve; compiling is faster afterwards, on all cores."""
        part = self.environment.folder / f"part-{number + 1}.txt"
        part.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        options = ["--no-deps", "--no-compile", "--progress-bar", "off", "--no-color", "--no-warn-script-location"]
        return self._job(f"pip {number + 1}", "-m", "pip", "install", *options, "--requirement", str(part))

    def _progress(self, running: Sequence[Job], pins: Sequence[Pin]) -> str:
        last = [words for job in running if (words := pip_progress(job.said()))]
        installed = self.environment.installed()
        there = sum(f"{pin.name}{pin.version}" in installed for pin in pins)
        return " | ".join([f"{there} in place", *last])


def names_of(jobs: Sequence[Job]) -> str:
    return ", ".join(job.name for job in jobs)


def quote(job: Job) -> str:
    lines = "\n".join(f"  {line[:200]}" for line in last_lines(job.said()))
    return f"Its last words:\n{lines}\nAll it said: {job.log}"


@contextlib.contextmanager
def alone(root: Path, console: Console, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Two runs at once would write the same files: the second waits. The kernel frees the lock of one that dies."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not take(descriptor):
            with console.step("waiting for another run that installs here") as step:
                while not take(descriptor):
                    step.update("")
                    pause(0.2)
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
