"""The real Triton server: it loads what export writes, batches, gives the same numbers, and serves the app."""

import hashlib
import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.engine import OnnxEngine, Slots
from contract.bundle import Bundle, read_bundle
from export.triton import Options, write_repository
from tests import real_triton
from tests.real_triton import RealTriton, running
from tests.toy import encoded, photo, write_toy_bundle

grpcclient = pytest.importorskip("tritonclient.grpc", reason="install the extra `triton`")
EXPECTED = "EXPECT_TRITON" in os.environ  # then no server is a failure, not a skip
pytestmark = pytest.mark.skipif(bool(real_triton.missing()) and not EXPECTED, reason=real_triton.missing())

Serve = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTriton]:
    """The toy, batches of at most 4, which may wait 50 ms to fill."""
    folder = tmp_path_factory.mktemp("triton")
    write_repository(toy_bundle, folder / "repository", Options(backend="python", threads=1, queue_delay=50_000))
    with running(folder / "repository", folder) as triton:
        assert triton.ready(), triton.log.read_text()
        yield triton


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return read_bundle(toy_bundle)


def here(bundle: Bundle, pixels: Any) -> dict[str, Any]:
    return OnnxEngine(bundle, device="cpu", slots=Slots(1, 1, 1), allow_cpu_fallback=False).embed(pixels)


def noise(seed: int, n: int, side: int = 8) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def over_grpc(server: RealTriton, pixels: Any) -> dict[str, Any]:
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        given = grpcclient.InferInput("pixels", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels)
        result = client.infer("toy", [given])
        return {name: result.as_numpy(name) for name in ("aligned", "base")}


def over_http(server: RealTriton, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/models/toy{path}", data, timeout=30) as reply:
        return json.loads(reply.read())


def test_grpc_gives_the_numbers_of_this_process(server: RealTriton, bundle: Bundle) -> None:
    for n in (1, 3, 4):
        there, expected = over_grpc(server, noise(n, n)), here(bundle, noise(n, n))
        for space in ("aligned", "base"):
            np.testing.assert_allclose(there[space], expected[space], rtol=1e-5, atol=1e-5)


def test_http_gives_the_golden_vectors(server: RealTriton, bundle: Bundle) -> None:
    pixels = bundle.golden.pixels
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    outputs = over_http(server, "/infer", {"inputs": [tensor]})["outputs"]
    for output in outputs:
        there = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_allclose(there, bundle.golden.vectors[output["name"]], rtol=1e-5, atol=1e-5)
    assert {output["name"] for output in outputs} == {"aligned", "base"}


def test_concurrent_requests_share_inferences_and_none_gets_anothers_rows(server: RealTriton, bundle: Bundle) -> None:
    before = over_http(server, "/stats")["model_stats"][0]
    sizes = [1 + seed % 3 for seed in range(48)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: over_grpc(server, noise(seed, sizes[seed])), range(48)))
    after = over_http(server, "/stats")["model_stats"][0]
    for seed, answer in enumerate(answers):
        expected = here(bundle, noise(seed, sizes[seed]))
        np.testing.assert_allclose(answer["aligned"], expected["aligned"], rtol=1e-5, atol=1e-5)
    images, runs = (after[key] - before[key] for key in ("inference_count", "execution_count"))
    assert images == sum(sizes)
    assert runs < 48
    assert max(batch["batch_size"] for batch in after["batch_stats"]) == 4


def test_the_server_uses_the_configuration_as_written(server: RealTriton, bundle: Bundle) -> None:
    config = over_http(server, "/config")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (4, [3, 8, 8])
    policy = config["dynamic_batching"]["default_queue_policy"]
    assert (policy["max_queue_size"], policy["default_timeout_microseconds"]) == (256, 10_000_000)
    assert policy["allow_timeout_override"] is True
    assert [warm["batch_size"] for warm in config["model_warmup"]] == [1, 4]
    for name, space in bundle.manifest.spaces.items():
        assert config["parameters"][f"fingerprint.{name}"]["string_value"] == space.fingerprint


@pytest.mark.parametrize(("n", "side", "words"), [(2, 16, r"Expected \[-1,3,8,8\]"), (5, 8, "batch-size must be <= 4")])
def test_images_too_large_and_batches_too_many_are_refused_and_the_next_is_served(
    server: RealTriton, n: int, side: int, words: str
) -> None:
    with pytest.raises(Exception, match=words):
        over_grpc(server, noise(0, n, side))
    assert over_grpc(server, noise(0, 1))["base"].shape == (1, 5)


def test_the_app_on_triton_answers_as_the_app_alone(server: RealTriton, serve: Serve) -> None:
    alone, on_triton = serve(), serve(triton_url=f"127.0.0.1:{server.grpc}")
    files = [("images", ("a", encoded(photo(seed)), "image/png")) for seed in range(7)]
    for space in ("aligned", "base"):
        replies = [client.post("/embed", files=files, data={"space": space}).json() for client in (alone, on_triton)]
        vectors = [[item["embedding"] for item in reply["data"]] for reply in replies]
        np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-5)
        assert replies[0]["fingerprint"] == replies[1]["fingerprint"]
    answers = [client.post("/odd-one-out", files=files[:3]).json()["results"] for client in (alone, on_triton)]
    assert answers[0][0]["odd_one_out"] == answers[1][0]["odd_one_out"]


def status(client: TestClient, path: str, wanted: int) -> Any:
    until = time.monotonic() + 30
    while (reply := client.get(path)).status_code != wanted:
        assert time.monotonic() < until, reply.text
        time.sleep(0.05)
    return reply


def test_the_app_outlives_its_triton_and_refuses_another_model_in_its_place(
    toy_bundle: Path, tmp_path: Path, serve: Serve
) -> None:
    write_repository(toy_bundle, tmp_path / "repository", Options(backend="python", threads=1))
    with running(tmp_path / "repository", tmp_path) as triton:
        client = serve(triton_url=f"127.0.0.1:{triton.grpc}", raise_bugs=False)
        triton.stop(signal.SIGKILL)
        reply = client.post("/embed", content=encoded(photo(0)), headers=PNG)
        assert (reply.status_code, reply.json()["code"]) == (503, "engine_away")
        assert int(reply.headers["Retry-After"]) >= 1
        status(client, "/health/ready", 503)
        triton.start()
        status(client, "/health/ready", 200)
        assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 200
        triton.stop(signal.SIGKILL)
        other = write_toy_bundle(tmp_path / "other", seed=1)
        write_repository(other, tmp_path / "others", Options(backend="python", threads=1))
        triton.repository = tmp_path / "others"
        triton.start()
        until = time.monotonic() + 30
        while "another model" not in (reply := status(client, "/health/ready", 503)).json()["detail"]:
            assert time.monotonic() < until, reply.text
        assert read_bundle(other).manifest.spaces["aligned"].fingerprint in reply.json()["detail"]
        assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 503


def refused(toy_bundle: Path, folder: Path, spoil: Callable[[Path], None], options: Options, **python: Path) -> str:
    """The log of a server that does not take the model, which is spoilt after it was written."""
    spoil(write_repository(toy_bundle, folder / "repository", options))
    with running(folder / "repository", folder, **python) as triton:
        assert triton.process.poll() not in (None, 0) or not triton.ready(), triton.log.read_text()
        return triton.log.read_text()


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new))

    return spoil


def scale_golden(model: Path) -> None:
    with np.load(model / "1/golden.npz") as stored:
        arrays = dict(stored)
    np.savez(model / "1/golden.npz", **arrays | {"base": arrays["base"] * 1.5})
    manifest = json.loads((model / "1/manifest.json").read_text())
    manifest["files"]["golden.npz"]["sha256"] = hashlib.sha256((model / "1/golden.npz").read_bytes()).hexdigest()
    (model / "1/manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (scale_golden, "output 'base' is .* away from the golden vectors"),
        (lambda model: (model / "1/golden.npz").write_bytes(b"x"), "golden.npz has sha256"),
        (
            edit("config.pbtxt", 'string_value: "cpu"', 'string_value: "cuda"'),
            "'cuda' was asked for; ONNX Runtime gave",
        ),
        (edit("1/manifest.json", '"fingerprint": "', '"fingerprint": "0'), "other fingerprints of"),
    ],
    ids=["golden", "corrupt", "device", "fingerprint"],
)
@pytest.mark.filterwarnings("ignore")
def test_the_python_variant_proves_itself_before_it_is_ready(
    toy_bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    assert re.search(words, refused(toy_bundle, tmp_path, spoil, Options(backend="python", threads=1)))


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="this environment has numpy 1")
def test_a_triton_that_mixes_up_numpy_2_arrays_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    options = Options(backend="python", threads=1)
    log = refused(toy_bundle, tmp_path, lambda _: None, options, python=real_triton.this_python())
    assert "cannot exchange arrays with numpy" in log


STAND_IN = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        file = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        names = [output.name for output in self.session.get_outputs()]
        pixels = [pb.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        given = [self.session.run(names, {"pixels": array}) for array in pixels]
        return [pb.InferenceResponse([pb.Tensor(*pair) for pair in zip(names, arrays)]) for arrays in given]
"""
"""The wheel lacks the onnxruntime backend. This one in its place lets the real server read, check and run
the configuration that is written for it: sizes, batcher, queue, warm-up. Its parameters only NVIDIA's reads."""


def stand_in(scratch: Path) -> None:
    """Put STAND_IN where `RealTriton` looks for backends."""
    real_triton.copy_backends(scratch)
    (scratch / "backends/onnxruntime").mkdir()
    (scratch / "backends/onnxruntime/model.py").write_text(STAND_IN)


@pytest.mark.parametrize("device", ["cpu", "cuda", "tensorrt"])
def test_the_server_runs_the_configuration_for_the_onnxruntime_backend(
    toy_bundle: Path, tmp_path: Path, bundle: Bundle, serve: Serve, device: Any
) -> None:
    model = write_repository(toy_bundle, tmp_path / "repository", Options(device=device))
    if device != "cpu":  # all but where it runs: there is no GPU here
        edit("config.pbtxt", "KIND_GPU", "KIND_CPU")(model)
    stand_in(tmp_path)
    with running(tmp_path / "repository", tmp_path) as triton:
        assert triton.ready(), triton.log.read_text()
        np.testing.assert_allclose(over_grpc(triton, noise(0, 4))["base"], here(bundle, noise(0, 4))["base"], rtol=1e-5)
        client = serve(triton_url=f"127.0.0.1:{triton.grpc}")
        assert client.post("/embed", content=encoded(photo(0)), headers=PNG).status_code == 200


@pytest.mark.parametrize(
    ("device", "old", "new", "words"),
    [
        ("cpu", "dims: 8", "dims: -7", "dimension must be integer >= 1, or -1"),
        ("cpu", "max_queue_size", "max_cue_size", "no field named"),
        ("cuda", "", "", "KIND_GPU but no GPUs"),
        ("tensorrt", "", "", "KIND_GPU but no GPUs"),
    ],
)
def test_the_server_would_have_refused_a_wrong_one(
    toy_bundle: Path, tmp_path: Path, device: Any, old: str, new: str, words: str
) -> None:
    stand_in(tmp_path)
    spoil = edit("config.pbtxt", old, new)
    assert re.search(words, refused(toy_bundle, tmp_path, spoil, Options(device=device)))


def test_written_text_is_what_the_server_reads(server: RealTriton) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    written = text_format.Parse((server.repository / "toy/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        read = client.get_model_config("toy").config
    for name in ("name", "backend", "max_batch_size", "default_model_filename"):
        assert getattr(read, name) == getattr(written, name)
    assert [list(tensor.dims) for tensor in read.input] == [list(tensor.dims) for tensor in written.input]
    assert dict(read.parameters) == dict(written.parameters)
