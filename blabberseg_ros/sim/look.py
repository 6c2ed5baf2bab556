# SPDX-License-Identifier: Apache-2.0
"""Light, season and film of a world: everything that changes its look and not its layout."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Look:
    """Global appearance of one world.

    Attributes:
        sun_azimuth_rad: Direction that light comes from, counter-clockwise from east.
        sun_elevation_rad: Height of the sun.
        shadow: Brightness left in a cast shadow, per channel.
        exposure: Factor on all colours.
        gamma: Exponent on all colours.
        saturation: Factor on the distance from grey.
        white_balance: Factor per channel.
        haze: Share of haze mixed in.
        haze_colour: RGB in 0..255.
        blur_px: Sigma of the blur of the finished map.
        grain: Factor on fine texture.
        clump: Factor on medium texture.
        wear: Factor on large blotches.
        noise_scale: Factor on the wavelengths of the noise.
        leaf_fall: Share of bare trees.
        autumn: Share of trees in autumn colours.
        leaf_hue: Of most leaves, in degrees.
        leaf_value: Brightness of most leaves, 0 to 1.
        autumn_hue: Of leaves in autumn, in degrees.
        relief: Contrast between the lit and the shaded side of crowns.
        dryness: 0 lush to 1 parched.
    """

    sun_azimuth_rad: float
    sun_elevation_rad: float
    shadow: tuple[float, float, float]
    exposure: float
    gamma: float
    saturation: float
    white_balance: tuple[float, float, float]
    haze: float
    haze_colour: tuple[float, float, float]
    blur_px: float
    grain: float
    clump: float
    wear: float
    noise_scale: float
    leaf_fall: float
    autumn: float
    leaf_hue: float
    leaf_value: float
    autumn_hue: float
    relief: float
    dryness: float

    @property
    def sun(self) -> tuple[float, float, float]:
        """Unit vector towards the sun: east, north, up."""
        flat = np.cos(self.sun_elevation_rad)
        return (
            float(flat * np.cos(self.sun_azimuth_rad)),
            float(flat * np.sin(self.sun_azimuth_rad)),
            float(np.sin(self.sun_elevation_rad)),
        )

    def lambert(self, slope: tuple[float, float]) -> float:
        """Give the brightness of a tilted surface relative to a flat one.

        Args:
            slope: Rise per metre east and north.
        """
        east, north, up = self.sun
        ambient = 0.32
        direct = max(0.0, up - slope[0] * east - slope[1] * north)
        direct /= float(np.sqrt(1.0 + slope[0] ** 2 + slope[1] ** 2)) * up
        return min(ambient + (1.0 - ambient) * direct, 1.55)


def draw_look(rng: np.random.Generator) -> Look:
    """Draw the appearance of a world at random; the ranges contain those of real orthophotos."""
    depth = rng.uniform(0.16, 0.5)
    blue = rng.uniform(0.0, 0.12)
    season = rng.choice(4, p=(0.34, 0.34, 0.18, 0.14))  # spring, summer, autumn, winter
    warm = rng.normal(0.0, 0.045)
    gamma = float(rng.uniform(0.95, 1.6))
    # Cameras expose for the scene: mid-grey ground comes out at a usual level, whatever the gamma.
    exposure = float(rng.uniform(0.25, 0.46) ** (1.0 / gamma) / 0.40)
    return Look(
        sun_azimuth_rad=float(rng.uniform(0, 2 * np.pi)),
        sun_elevation_rad=float(np.deg2rad(rng.uniform(26, 66))),
        shadow=(depth - blue / 2, depth, depth + blue),
        exposure=exposure,
        gamma=gamma,
        saturation=float(rng.uniform(0.65, 1.15)),
        white_balance=(1.0 + warm, float(rng.uniform(0.99, 1.09)), 1.0 - warm),
        haze=float(rng.choice((0.0, 1.0), p=(0.4, 0.6)) * rng.uniform(0.0, 0.17)),
        haze_colour=(float(rng.uniform(90, 190)), float(rng.uniform(105, 200)),
                     float(rng.uniform(115, 215))),
        blur_px=float(rng.uniform(0.45, 1.15)),
        grain=float(rng.uniform(0.6, 1.5)),
        clump=float(rng.uniform(0.5, 1.25)),
        wear=float(rng.uniform(0.45, 1.05)),
        noise_scale=float(np.exp(rng.uniform(np.log(0.65), np.log(1.6)))),
        leaf_fall=float((0.25, 0.03, 0.2, 0.6)[season] * rng.uniform(0.3, 1.4)),
        autumn=float((0.12, 0.05, 0.6, 0.15)[season] * rng.uniform(0.3, 1.3)),
        leaf_hue=float(rng.uniform(66, 118)),
        leaf_value=float(rng.uniform(.27, .42)),
        autumn_hue=float(rng.uniform(16, 48)),
        relief=float(rng.uniform(.8, 1.6)),
        dryness=float(np.clip((0.2, 0.5, 0.4, 0.35)[season] + rng.normal(0, 0.25), 0, 1)),
    )
