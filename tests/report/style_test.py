"""The classes' colours can be told apart, with the common forms of colour blindness too."""

import itertools

import numpy as np
import pytest

from ssl_jax.report.style import CSS, DARK, LIGHT, SCRIPT

# Machado, Oliveira & Fernandes 2009, severity 1.0, in linear sRGB.
VISION = {
  'normal': [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                 [-0.003882, -0.048116, 1.051998]],
  'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]],
  'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                 [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750],
          [.0193339, .1191920, .9503041]]


def linear(colour):
  c = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055)**2.4)


def cielab(rgb):
  xyz = np.array(TO_XYZ) @ rgb / [0.95047, 1, 1.08883]
  f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def luminance(colour):
  return linear(colour) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize('kind', VISION)
@pytest.mark.parametrize('palette', [LIGHT, DARK], ids=['light', 'dark'])
def test_any_two_classes_differ_visibly(palette, kind):
  seen = [cielab(np.clip(np.array(VISION[kind]) @ linear(c), 0, 1)) for c in palette]
  assert len(seen) == 10
  assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 20


@pytest.mark.parametrize('palette, background, least', [(LIGHT, '#ffffff', 2), (DARK, '#1b1d22', 3)])
def test_every_class_stands_out_from_the_background(palette, background, least):
  for colour in palette:
    low, high = sorted([luminance(colour), luminance(background)])
    assert (high + 0.05) / (low + 0.05) >= least, colour


def test_style_and_script_cannot_end_their_elements():
  assert '</' not in CSS and '</' not in SCRIPT
  assert CSS.count('{') == CSS.count('}')
