"""Can these photos calibrate? What a careless choice looks like, without labels."""

from torch import Tensor

FLAT = 0.5  # gray levels of standard deviation that a photo has at least
UNSURE = 0.2  # mean largest probability; S0 has 0.61 on its own photos, 0.24 on other ones, 0.11 to 0.18 on textures
ONE_SIDED = 0.5  # of the photos, predicted as one class
FEW_CLASSES = 5  # networks of fewer are sure of anything, and may well see one class most of the time


def warnings_about(pixels: Tensor, probabilities: Tensor | None, folder: str) -> list[str]:
    """Warnings about calibration photos, each a line.

    Args:
        pixels: 0 .. 255, (N, C, H, W).
        probabilities: of the float network, (N, classes); None where classes do not exclude each other.
        folder: where the photos are, for the messages.

    Raises:
        ValueError: if no photo has anything on it.
    """
    if not pixels.flatten(2).std(2).amax() > FLAT:
        raise ValueError(
            f'{folder}: each of {len(pixels)} photos is of one color; ranges need photos of what the network will see'
        )
    warnings = []
    if pixels.shape[1] == 3 and (pixels - pixels.mean(1, keepdim=True)).abs().amax() < FLAT:
        warnings.append(f'{folder}: all photos are gray; ranges for color need photos in color')
    if probabilities is None or probabilities.shape[1] < FEW_CLASSES:
        return warnings
    confidence = float(probabilities.amax(1).mean())
    share = float(probabilities.argmax(1).bincount().amax()) / len(probabilities)
    if confidence < UNSURE:
        warnings.append(
            f'{folder}: the network is unsure of these photos (mean probability of the best class {confidence:.2f}): '
            'textures, blur and noise give ranges that do not fit photos; take some of what the network will see'
        )
    if share > ONE_SIDED:
        warnings.append(
            f'{folder}: {share:.0%} of the photos are predicted as one class; what others need may be clipped'
        )
    return warnings
