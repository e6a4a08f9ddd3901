"""The natural logarithm, the same to the last bit on every machine.

NumPy's and the C library's differ between processors, and between contiguous arrays and others.
This one is made of operations that IEEE 754 defines exactly, after fdlibm's ``e_log.c`` (Sun
Microsystems, 1993); its error is below 1 ulp.
"""

from __future__ import annotations

import numpy as np

from market_data_core.contracts.feature import Floats

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ODD = (6.666666666666735130e-01, 2.857142874366239149e-01, 1.818357216161805012e-01,
        1.479819860511658591e-01)  # fmt: skip
_EVEN = (3.999999999940941908e-01, 2.222219843214978396e-01, 1.531383769920937332e-01)
_SQRT_HALF = 0.7071067811865476


def log(values: Floats) -> Floats:
    """Shape as `values`; of what is not positive and finite NaN."""
    usable = (values > 0) & np.isfinite(values)
    fraction, exponent = np.frexp(np.where(usable, values, 1.0))
    low = fraction < _SQRT_HALF
    f = np.where(low, 2.0 * fraction, fraction) - 1.0
    k = (exponent - low).astype(np.float64)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (_EVEN[0] + w * (_EVEN[1] + w * _EVEN[2]))
    t2 = z * (_ODD[0] + w * (_ODD[1] + w * (_ODD[2] + w * _ODD[3])))
    half = 0.5 * f * f
    result = k * _LN2_HIGH - ((half - (s * (half + (t1 + t2)) + k * _LN2_LOW)) - f)
    return np.where(usable, result, np.nan)
