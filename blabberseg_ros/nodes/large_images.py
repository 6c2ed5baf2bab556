# SPDX-License-Identifier: Apache-2.0
"""Room for images in Fast DDS' shared memory.

All that a process sends waits in one segment until it is read: 512 KiB by default, which one
352×352 probability map fills. A sample for which there is no room is lost; a reliable writer
sends it again with its next sample, or after its heartbeat period of 3 s. So an answer that was
ready came up to 3 s late when a frame of the stream was on its way (4 of 2,053 with the stream at
30 Hz), and maps for best-effort subscribers did not come at all.
"""

import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

PROFILE = Path(__file__).with_name('fastdds.xml')
# All outputs for one frame of 640×480 are 3 MB. The segment counts as memory of the process.
SEGMENT_BYTES = 8 * 1024 * 1024
SHARED_MEMORY = Path('/dev/shm')
# Fast DDS 2 (ROS 2 Humble to Jazzy) knows the second name only, Fast DDS 3 warns about it.
VARIABLE, OLD_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'
OLD_DISTRIBUTIONS = ('humble', 'iron', 'jazzy')
# Whoever has set one of these, or has such a file where the node starts, knows what he wants.
CHOICES = (VARIABLE, OLD_VARIABLE, 'FASTDDS_BUILTIN_TRANSPORTS')
CHOICE_FILES = ('DEFAULT_FASTDDS_PROFILES.xml', 'DEFAULT_FASTRTPS_PROFILES.xml')


def make_room_for_images(environment: MutableMapping[str, str] = os.environ,
                         shared_memory: Path = SHARED_MEMORY) -> bool:
    """Choose our Fast DDS profile, before `rclpy.init`, unless the user has chosen one.

    Other middlewares do not read it.

    Args:
        environment: is changed.
        shared_memory: folder of the segments. Where too little is free, as in a container with
            Docker's 64 MB and many nodes, Fast DDS' default stays: it would do without shared
            memory otherwise.

    Returns:
        Whether the profile is in use.
    """
    if any(environment.get(name) for name in CHOICES):
        return False
    if any(Path(name).exists() for name in CHOICE_FILES):
        return False
    try:
        free_bytes = shutil.disk_usage(shared_memory).free
    except OSError:
        return False
    if free_bytes < 2 * SEGMENT_BYTES:
        return False
    old = environment.get('ROS_DISTRO') in OLD_DISTRIBUTIONS
    environment[OLD_VARIABLE if old else VARIABLE] = str(PROFILE)
    return True
