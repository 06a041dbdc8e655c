"""Scalers of features and χ, fitted on training rows only and stored in the checkpoint.

Fitted by `training.stage1`; applied wherever features or χ enter or leave the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

# A structure far outside the training range must not let a single extreme descriptor dominate the network.
LARGEST_SCALED_DESCRIPTOR = 8.0


@dataclass(frozen=True)
class FeatureScaler:
    """Standardises descriptors; fingerprint counts are left unchanged, so that zeros stay zeros.

    Attributes
    ----------
    n_fingerprint
        Number of leading columns left unchanged.
    mean, scale
        Of the remaining columns, (n_descriptors,) float32; a constant column has scale 1.
    """

    n_fingerprint: int
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, features: sparse.csr_array, n_fingerprint: int, rows: np.ndarray) -> FeatureScaler:
        """Fit on rows of features (n, n_features) given by index; a row counts as often as it is listed."""
        descriptors = features[rows][:, n_fingerprint:].toarray().astype(np.float64)
        if descriptors.size == 0:
            n_descriptors = descriptors.shape[1]
            return cls(n_fingerprint, np.zeros(n_descriptors, np.float32), np.ones(n_descriptors, np.float32))
        scale = descriptors.std(axis=0)
        scale[scale < 1e-9] = 1.0
        return cls(n_fingerprint, descriptors.mean(axis=0).astype(np.float32), scale.astype(np.float32))

    def transform(self, features: np.ndarray) -> np.ndarray:
        """A scaled copy of features (n_rows, n_features), float32."""
        scaled = features.astype(np.float32, copy=True)
        scaled[:, self.n_fingerprint :] = self._scale(scaled[:, self.n_fingerprint :])
        return scaled

    def transform_sparse(self, features: sparse.csr_array) -> sparse.csr_array:
        """As `transform`, for features in sparse form."""
        descriptors = self._scale(features[:, self.n_fingerprint :].toarray())
        blocks = [features[:, : self.n_fingerprint], sparse.csr_array(descriptors)]
        return sparse.csr_array(sparse.hstack(blocks, format="csr", dtype=np.float32))

    def _scale(self, descriptors: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = (descriptors - self.mean) / self.scale
        return scaled.clip(-LARGEST_SCALED_DESCRIPTOR, LARGEST_SCALED_DESCRIPTOR)


@dataclass(frozen=True)
class ChiScaler:
    """Mean and standard deviation of χ over training rows."""

    mean: float
    scale: float

    @classmethod
    def fit(cls, chi: np.ndarray) -> ChiScaler:
        """Fit on the χ of training rows, (n_rows,)."""
        scale = float(np.std(chi))
        return cls(float(np.mean(chi)), scale if scale > 1e-9 else 1.0)

    def transform(self, chi: np.ndarray) -> np.ndarray:
        """Standardised χ, float32, same shape."""
        return ((chi - self.mean) / self.scale).astype(np.float32)

    def inverse(self, standardised: np.ndarray) -> np.ndarray:
        """χ from standardised χ, float64, same shape."""
        return standardised.astype(np.float64) * self.scale + self.mean
