"""Draw the block of README.md for light and dark pages: ``python docs/block.py`` writes block_{light,dark}.svg."""

import sys
from pathlib import Path

from mobileone_ext.pictures import picture

HERE = Path(__file__).parent
# Ink, what computes on maps (blue), what computes on kernels (orange).
THEMES = {'light': ('#1f2328', '#cfe8f7', '#fbe3c4'), 'dark': ('#e6edf3', '#124a6b', '#6b4410')}
TITLES = 'branches: training, as in the paper', 'moments: training, here', 'fused: deployed'
LINKS = 'same outputs\nand gradients', 'same predictions,\nproved on images'
LINE = 0.2  # height of a line of text in a box


def box(axes, x, y, text, fill, ink):
    """Centered; its upper and its lower edge."""
    style = dict(boxstyle='round,pad=0.2', facecolor=fill, edgecolor=ink, linewidth=1)
    axes.text(x, y, text, ha='center', va='center', color=ink, fontsize=9, bbox=style)
    half = LINE / 2 * (text.count('\n') + 1) + 0.07
    return y + half, y - half


def arrow(axes, start, end, ink, curve=0.0, line='solid'):
    look = dict(arrowstyle='-|>', color=ink, linewidth=1.1, linestyle=line, shrinkA=0, shrinkB=0)
    axes.annotate('', end, start, arrowprops=dict(look, connectionstyle=f'arc3,rad={curve}'))


def branches(axes, at, ink, maps, _):
    """k convolutions, a 1x1 one and a norm alone, each but the last with its norm, summed."""
    below = box(axes, at, 2.95, '+', maps, ink)[1]
    names = '3x3 conv\nnorm', '3x3 conv\nnorm', 'scale:\n1x1 conv\nnorm', 'skip:\nnorm'
    for x, name in zip((-1.85, -0.35, 0.75, 1.75), names):
        top, bottom = box(axes, at + x, 1.62, name, maps, ink)
        arrow(axes, (at, 0.42), (at + x, bottom), ink)
        arrow(axes, (at + x, top), (at, below), ink)
    axes.text(at - 1.1, 1.62, '... k', ha='center', va='center', color=ink, fontsize=11)
    return at, 3.12


def moments(axes, at, ink, maps, kernels):
    left, right = at - 0.85, at + 0.85
    top, bottom = box(axes, left, 1.15, 'mean and\ncovariance', kernels, ink)
    arrow(axes, (at, 0.42), (left, bottom), ink)
    last, bottom = box(axes, left, 2.0, 'one kernel of\nall branches', kernels, ink)
    arrow(axes, (left, top), (left, bottom), ink)
    top, bottom = box(axes, right, 2.85, '3x3 conv', maps, ink)
    arrow(axes, (left, last), (right - 0.5, 2.85), ink, line='dashed')
    arrow(axes, (at, 0.42), (right, bottom), ink, curve=0.15)
    return right, top


def fused(axes, at, ink, maps, _):
    top, bottom = box(axes, at, 2.0, '3x3 conv', maps, ink)
    arrow(axes, (at, 0.42), (at, bottom), ink)
    return at, top


def draw(path: Path, ink: str, maps: str, kernels: str) -> None:
    with picture(path, (10, 3.6), TITLES) as figure:
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.set(xlim=(-2.5, 10.5), ylim=(0.1, 4.5))
        axes.axis('off')
        for at, title, form in zip((0, 5.1, 9.2), TITLES, (branches, moments, fused)):
            axes.text(at, 4.35, title, ha='center', va='center', color=ink, fontsize=10, weight='bold')
            axes.text(at, 0.28, 'input', ha='center', va='center', color=ink, fontsize=9)
            x, top = form(axes, at, ink, maps, kernels)
            arrow(axes, (x, top), (x, box(axes, x, 3.7, 'ReLU', maps, ink)[1]), ink)
        for at, text in zip((2.95, 7.45), LINKS):
            axes.text(at, 2.05, text, ha='center', va='bottom', color=ink, fontsize=9)
            arrow(axes, (at - 0.45, 1.9), (at + 0.45, 1.9), ink)


if __name__ == '__main__':
    suffix = sys.argv[1] if len(sys.argv) > 1 else '.svg'
    for theme, colors in THEMES.items():
        draw(HERE / f'block_{theme}{suffix}', *colors)
