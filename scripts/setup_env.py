#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make `.venv`: ROS 2, the interface packages and blabberseg_ros, on a machine without ROS.

Standard library only. Each step is skipped when what it depends on has not changed since it last
succeeded, so that a second run takes a fraction of a second. Nothing outside `.venv` is touched.
"""

# So that a Python that is too old gets as far as the message that says so.
from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'scripts' / 'requirements-ros.txt'
INTERFACES = ('ros2_open_voc_landing_heatmap_srv', 'blabberseg_interfaces')
# ROS wheels exist for these.
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
STEPS = 5
LOG_TAIL_LINES = 25
HEARTBEAT_S = 15.0
# A sourced ROS 2, or another environment, would be imported instead of what is installed here.
FOREIGN_VARIABLES = (
    'AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'PYTHONHOME', 'PYTHONPATH',
    'RMW_IMPLEMENTATION', 'ROS_DISTRO', '_ROS_WHEELS_BOOTSTRAP_COMPLETE')
PROBE = (
    'import pip, sys, sysconfig; '
    'print("Python %d.%d" % sys.version_info[:2], sysconfig.get_paths()["include"])')
CHECK_IMPORTS = (
    'import rclpy; '
    'from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap; '
    'from blabberseg_interfaces.srv import GetPrompts, SetPrompts; '
    'import blabberseg_ros; '
    'rclpy.init(); rclpy.create_node("setup_check").create_service('
    'GetLandingHeatmap, "check", lambda request, reply: reply); rclpy.shutdown()')


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


def main() -> int:
    """Check the machine, then make or complete the environment.

    Returns:
        The exit code: 0 done, 1 a step failed, 2 the machine lacks something.
    """
    arguments = parse_arguments()
    wanted = missing()
    if wanted:
        print(wanted, file=sys.stderr)
        return 2
    if arguments.check:
        print('this machine has all that the set-up needs')
        return 0
    # One set-up at a time; the lock ends with the process and its children.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        wait_for(lock)
        Environment(arguments.venv.absolute(), lock).complete(arguments.extras)
    except SetupError as error:
        print(f'\n{error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ninterrupted; run it again and it carries on', file=sys.stderr)
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--extras', default='cpu,opencv', help='extras of setup.py, with commas')
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='folder to make')
    parser.add_argument('--check', action='store_true', help='only check the machine')
    arguments = parser.parse_args()
    arguments.extras = sorted(filter(None, arguments.extras.split(',')))
    return arguments


def missing() -> str | None:
    """Say what this machine lacks, with the one apt line that brings it; None if nothing."""
    here = f'{sys.version_info[0]}.{sys.version_info[1]}'
    machine = platform.machine()
    if sys.platform != 'linux' or machine not in ('x86_64', 'AMD64'):
        return (f'ROS 2 from PyPI exists for Linux on x86-64; this is {sys.platform} on '
                f'{machine}.\nInstall ROS 2 as usual there (on a Jetson: from apt), source it, '
                'and run:\n\n    colcon build --base-paths . interfaces\n')
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        return (f'Python 3.{OLDEST_PYTHON[1]} to 3.{NEWEST_PYTHON[1]} is needed; {sys.executable} '
                f'is {here}.\nInstall another one, where your system has it:\n\n'
                '    sudo apt install python3.12 python3.12-venv python3.12-dev\n\n'
                'and name it: make demo PYTHON=python3.12\n')
    packages = []
    # Debian and Ubuntu split these two off; importing venv alone works without them.
    if any(importlib.util.find_spec(name) is None for name in ('venv', 'ensurepip')):
        packages.append(f'python{here}-venv')
    if not (Path(sysconfig.get_paths()['include']) / 'Python.h').exists():
        packages.append(f'python{here}-dev')
    if not all(shutil.which(compiler) for compiler in ('gcc', 'g++')):
        packages.append('g++')  # brings gcc
    if not shutil.which('make'):
        packages.append('make')
    if not packages:
        return None
    return (f'This machine lacks {", ".join(packages)}. Install with:\n\n'
            f'    sudo apt install {" ".join(packages)}\n\nand run the same command again.')


def wait_for(lock: int) -> None:
    """Take the lock, and say so when another set-up holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('another set-up is at work in this folder; waiting for it', flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


class Environment:
    """A virtual environment that is a ROS 2 prefix, and the steps that make it.

    `<venv>/.setup/` holds a stamp for each step that succeeded: the hash of all that the step
    depended on, the steps before it included.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        """Name the environment; nothing is made yet.

        Args:
            folder: the environment's folder.
            lock: file descriptor of the held lock, which child processes inherit.
        """
        self.folder = folder
        self.python = folder / 'bin' / 'python'
        self.stamps = folder / '.setup'
        self.unfinished = self.stamps / 'unfinished'
        self.log = folder / 'setup.log'
        self.lock = lock
        self.changed = False

    def complete(self, extras: list[str]) -> None:
        """Run the steps that are not up to date."""
        started = time.monotonic()
        base = self.make_venv()
        ros = digest(base, REQUIREMENTS)
        self.step(2, 'ros', ros, 'Installing ROS 2 Kilted from PyPI (about 100 MB)',
                  self.install_ros)
        sources = [path for name in INTERFACES for path in sorted((ROOT / 'interfaces' / name)
                                                                  .rglob('*')) if path.is_file()]
        interfaces = digest(ros, *sources)
        self.step(3, 'interfaces', interfaces, 'Building the ROS interface packages',
                  self.build_interfaces)
        package = digest(ros, ROOT / 'setup.py', ROOT / 'setup.cfg',
                         ROOT / 'blabberseg_ros' / '__init__.py')
        self.install_package(package, extras)
        self.step(5, 'check', digest(interfaces, self.stamps / 'package'),
                  'Checking that ROS 2 and the package start',
                  self.check_start)
        if self.changed:
            print(f'{self.folder} is ready after {time.monotonic() - started:.0f} s', flush=True)

    def make_venv(self) -> str:
        """Make the virtual environment, or make it anew where it cannot be used.

        Returns:
            What the environment is built on: place and version of its Python.
        """
        base = f'{self.folder} {this_python()}'
        reason = self.why_unusable(base)
        if reason is None:
            return base
        self.changed = True
        if self.folder.exists():
            print(f'{self.folder} is made anew: {reason}', flush=True)
            shutil.rmtree(self.folder)
        self.stamps.mkdir(parents=True)
        self.unfinished.touch()
        self.announce(1, f'Making {self.folder}')
        self.run([sys.executable, '-m', 'venv', str(self.folder)], 1)
        (self.stamps / 'venv').write_text(base)
        self.unfinished.unlink()
        return base

    def why_unusable(self, base: str) -> str | None:
        """Return why the folder cannot serve as the environment, None where it can."""
        if not self.folder.exists():
            return 'it is not there'
        if self.unfinished.exists():
            return 'an installation into it was broken off'
        try:
            probe = subprocess.run([self.python, '-c', PROBE], env=self.environment(), text=True,
                                   capture_output=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return 'its Python or its pip does not start'
        if probe.stdout.strip() != this_python():
            return f'it has {probe.stdout.strip()}, this is {this_python()}'
        stamp = self.stamps / 'venv'
        if not stamp.exists():  # made by hand, and good
            self.stamps.mkdir(exist_ok=True)
            stamp.write_text(base)
        if stamp.read_text() != base:
            return 'it was moved, and an environment cannot be'
        return None

    def install_ros(self) -> None:
        """Install the ROS wheels and mend the paths that they carry from their build image."""
        self.pip(['--requirement', str(REQUIREMENTS)], 2)
        numpy = self.run([str(self.python), '-c', 'import numpy; print(numpy.get_include())'], 2)
        paths = {
            r'/opt/[^";]*?/numpy/_?core/include': numpy.strip().split('\n')[-1],
            r'/opt/[^";]*?/include/python3\.\d+': sysconfig.get_paths()['include'],
        }
        for path in (self.folder / 'share').rglob('*.cmake'):
            text = mended = path.read_text(encoding='utf-8')
            for pattern, here in paths.items():
                mended = re.sub(pattern, here, mended)
            if mended != text:
                path.write_text(mended, encoding='utf-8')

    def build_interfaces(self) -> None:
        """Build the interface packages with CMake and install them into the environment."""
        cmake = str(self.folder / 'bin' / 'cmake')
        for name in INTERFACES:
            build = self.stamps / 'build' / name
            shutil.rmtree(build, ignore_errors=True)
            self.run([cmake, '-S', str(ROOT / 'interfaces' / name), '-B', str(build),
                      f'-DCMAKE_INSTALL_PREFIX={self.folder}', '-DCMAKE_BUILD_TYPE=Release',
                      f'-DPython3_EXECUTABLE={self.python}', '-DBUILD_TESTING=OFF'], 3)
            self.run([cmake, '--build', str(build), '--parallel', str(os.cpu_count() or 1)], 3)
            self.run([cmake, '--install', str(build)], 3)

    def check_start(self) -> None:
        """Start ROS 2 in the environment and make a node with the built service type."""
        self.run([str(self.python), '-c', CHECK_IMPORTS], 5)

    def install_package(self, state: str, extras: list[str]) -> None:
        """Install blabberseg_ros from this checkout, editable, with its extras.

        Args:
            state: hash of what the installation depends on.
            extras: extras asked for. Those of earlier runs stay.
        """
        stamp = self.stamps / 'package'
        before = json.loads(stamp.read_text()) if stamp.exists() else {'state': '', 'extras': []}
        if before['state'] == state and set(extras) <= set(before['extras']):
            return
        self.changed = True
        extras = sorted({*extras, *before['extras']})
        size = ', several GB: torch' if 'torch' in extras else ''
        self.announce(4, f'Installing blabberseg_ros ({", ".join(extras)}{size})')
        self.pip(['--no-build-isolation', '--editable', f'{ROOT}[{",".join(extras)}]'], 4)
        stamp.write_text(json.dumps({'state': state, 'extras': extras}))

    def step(self, number: int, name: str, state: str, title: str,
             action: Callable[[], None]) -> None:
        """Run a step unless it succeeded before in the same state, and stamp it."""
        stamp = self.stamps / name
        if stamp.exists() and stamp.read_text() == state:
            return
        self.changed = True
        self.announce(number, title)
        action()
        stamp.write_text(state)

    def pip(self, arguments: list[str], step: int) -> None:
        """Install with pip. When it is killed, a mark stays: it may have left half packages."""
        self.unfinished.touch()
        try:
            self.run([str(self.python), '-m', 'pip', '--disable-pip-version-check', 'install',
                      '--no-input', '--progress-bar', 'off', *arguments], step)
        except SetupError:
            self.unfinished.unlink()
            raise
        self.unfinished.unlink()

    def environment(self) -> dict[str, str]:
        """Return the variables for child processes: this environment's, nobody else's."""
        variables = {name: value for name, value in os.environ.items()
                     if name not in FOREIGN_VARIABLES}
        if 'AMENT_PREFIX_PATH' in os.environ:
            variables.pop('LD_LIBRARY_PATH', None)
        libraries = [str(self.folder / 'lib'), *filter(None, [variables.get('LD_LIBRARY_PATH')])]
        return {
            **variables,
            'PATH': f'{self.folder / "bin"}{os.pathsep}{variables.get("PATH", os.defpath)}',
            'LD_LIBRARY_PATH': os.pathsep.join(libraries),
            'CMAKE_PREFIX_PATH': str(self.folder),
            'AMENT_PREFIX_PATH': str(self.folder),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        }

    def announce(self, number: int, title: str) -> None:
        """Tell which step begins."""
        print(f'[{number}/{STEPS}] {title}', flush=True)

    def run(self, command: list[str], step: int) -> str:
        """Run a command; its output goes to the log.

        Returns:
            What it wrote to stdout and stderr.

        Raises:
            SetupError: it failed; the message holds the end of its output.
        """
        with self.log.open('a+b') as log:
            log.write(f'\n$ {" ".join(command)}\n'.encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, env=self.environment(),
                                       pass_fds=(self.lock,))
            code = self.wait(process)
            log.seek(begin)
            output = log.read().decode(errors='replace')
        if code == 0:
            return output
        tail = '\n'.join(f'    {line}' for line in output.splitlines()[-LOG_TAIL_LINES:])
        raise SetupError(
            f'{tail}\n\nStep {step} of {STEPS} failed (exit code {code}); the full log is '
            f'{self.log}.\nNo network or a full disk is the usual cause. Mend it and run the same '
            f'command again: it carries on here.\nIf that does not help, start afresh with: '
            f'rm -r {self.folder}')

    def wait(self, process: subprocess.Popen) -> int:
        """Wait for a command, and show from time to time where it is.

        Returns:
            Its exit code.
        """
        started = time.monotonic()
        while True:
            try:
                return process.wait(timeout=HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                last = self.log.read_text(errors='replace').rstrip().rsplit('\n', 1)[-1]
                print(f'      {time.monotonic() - started:.0f} s: {last.strip()[:90]}', flush=True)


def this_python() -> str:
    """Return version and headers of the running Python: what an environment is built on."""
    return f'Python {sys.version_info[0]}.{sys.version_info[1]} {sysconfig.get_paths()["include"]}'


def digest(*parts: str | Path) -> str:
    """Return the SHA-256 of texts and of files (their paths and contents)."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else b''
        total.update(f'{part}\0{len(data)}\0'.encode() + data)
    return total.hexdigest()


if __name__ == '__main__':
    sys.exit(main())
