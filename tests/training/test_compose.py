"""Two transforms as one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.files import sha256_of
from training.__main__ import main
from training.align import Transform


def a_transform(seed: int, width: int, size: int, power: float = float("nan")) -> Transform:
    rng = np.random.default_rng(seed)
    draw: Any = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    mean, std = draw(width) if seed % 2 else np.float32(0.3), np.array(1.7, np.float32)
    return Transform(draw(width, size), draw(size), np.asarray(mean), std, np.array(power, np.float32))


@pytest.mark.parametrize("power", [float("nan"), 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_map_does_what_two_did(tmp_path: Path, seed: int, power: float) -> None:
    first, second = a_transform(seed, 6, 4, power), a_transform(seed + 3, 4, 5)
    first.save(tmp_path / "first.npz")
    second.save(tmp_path / "second.npz")
    main(
        ["compose", str(tmp_path / "first.npz"), str(tmp_path / "second.npz"), "--out", str(tmp_path / "new/both.npz")]
    )
    x = np.abs(np.random.default_rng(9).normal(size=(20, 6))).astype(np.float32)
    both = Transform.load(tmp_path / "new/both.npz")
    np.testing.assert_allclose(both.apply(x), second.apply(first.apply(x)), rtol=1e-4, atol=1e-4)


def test_what_was_composed_is_recorded_and_other_inputs_are_refused(tmp_path: Path) -> None:
    first, second, out = (tmp_path / name for name in ("first.npz", "second.npz", "both.npz"))
    a_transform(0, 6, 4).save(first)
    a_transform(3, 4, 5).save(second)
    asked = ["compose", str(first), str(second), "--out", str(out)]
    main(asked)
    record = json.loads((tmp_path / "both.json").read_text())
    assert record["inputs"] == {"first": sha256_of(first), "second": sha256_of(second)}
    assert {"python", "numpy"} <= set(record["versions"])
    main(asked)
    a_transform(4, 4, 5).save(second)
    with pytest.raises(SystemExit, match=r"both\.json was made with another inputs; remove it or choose another"):
        main(asked)
    with pytest.raises(SystemExit, match=r"--out is .*both\.json; expected a file that ends in \.npz"):
        main([*asked[:-1], f"{tmp_path}/both.json"])


def test_a_width_that_does_not_fit_and_a_power_in_the_middle_are_refused() -> None:
    with pytest.raises(ValueError, match="gives 4 numbers, the second takes 3"):
        a_transform(0, 6, 4).then(a_transform(1, 3, 2))
    with pytest.raises(ValueError, match="has a power"):
        a_transform(0, 6, 4).then(a_transform(1, 4, 2, power=0.5))
