"""The other packages that our scores are compared with, and label maps to do so."""

import surface_distance as peer
from scipy import ndimage


def peer_values(prediction, reference, spacing, tolerance):
    """NSD, HD95 and ASD (both surfaces' elements together) by the package."""
    found = peer.compute_surface_distances(reference, prediction, spacing)
    weighted = found["distances_gt_to_pred"] @ found["surfel_areas_gt"]
    weighted += found["distances_pred_to_gt"] @ found["surfel_areas_pred"]
    return (
        peer.compute_surface_dice_at_tolerance(found, tolerance),
        peer.compute_robust_hausdorff(found, 95),
        weighted / (found["surfel_areas_gt"].sum() + found["surfel_areas_pred"].sum()),
    )


def random_labels(rng, shape, classes=3):
    """A label map with smooth and rough borders, structures at the volume's border and single voxels."""
    fields = ndimage.gaussian_filter(rng.normal(size=(classes + 1, *shape)), (0, *[rng.uniform(0.4, 2.5)] * len(shape)))
    return fields.argmax(axis=0)
