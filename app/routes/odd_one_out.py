"""POST /odd-one-out: which of three images is the odd one, with which probability."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from app import errors, intake, occlusion, replies
from app.errors import ServiceError
from app.exchange import Taken, body_schema, fields_of, head, taken_in, usage, vectors_of
from app.intake import Given
from app.judgments import Thresholds, TripletError, judge, triplet_index
from app.routes.request_route import RequestRoute
from app.schemas import OddOneOutOptions, OddOneOutReply, OddOneOutRequest
from app.served import ServedModel
from app.shadow import Answered

router = APIRouter(route_class=RequestRoute)

BLOCK = 1024
"""Triplets judged and written at once: what they take fits in a cache, and a long reply never is all objects."""

_TRIPLETS = {"type": "string", "description": "JSON, e.g. [[0,1,2],[0,1,3]]; needed unless exactly three are given."}
_BODY = body_schema("OddOneOutRequest", fields_of(OddOneOutOptions) | {"triplets": _TRIPLETS}, ["images"])


@router.post(
    "/odd-one-out",
    response_model=OddOneOutReply,
    responses=errors.responses(*errors.REQUEST_KINDS, "too_many_vectors", "too_many_triplets"),
    openapi_extra=_BODY,
    summary="Which of three is the odd one out",
)
async def odd_one_out(request: Request) -> Response:
    """Judge triplets over a list of images, or of vectors; each image is embedded once.

    Probabilities are those of each image being the odd one; the temperature that turns
    similarities into them, and whether it was fitted to people, stand in the reply.
    With `explain`, each judgment has maps of what in the three images made the answer.
    """
    async with taken_in(request, raw=False) as taken:
        service, timings = taken.service, taken.timings
        with timings.measure("read"):
            options, given = await _parse_odd_one_out(request, taken)
        model = taken.model(options)
        fingerprint = model.space_fingerprint(options)
        n = len(given.images) if given.vectors is None else len(given.vectors)
        try:
            index = triplet_index(options.triplets, n)
        except TripletError as error:
            raise ServiceError("invalid_request", str(error), index=error.index) from error
        space, tie_rule = model.manifest.spaces[options.space], model.manifest.tie_rule
        thresholds = Thresholds(options.min_margin, options.max_entropy)
        with _room_to_explain(options, given, len(index), model, taken):
            vectors, files = await vectors_of(model, given, options.space, taken)
            explanations: list[dict[str, Any] | None] = []
            if options.explain:
                answers = judge(vectors, index, space, tie_rule, thresholds)
                explanations = await _explanations(answers, vectors, files, options.space, model, taken)
        shadowed = service.shadow if files and service.shadow and service.shadow.wants(model) else None
        decisions: list[int | None] = []

        def judged() -> Iterator[list[dict[str, Any]]]:
            for i in range(0, len(index), BLOCK):
                results = judge(vectors, index[i : i + BLOCK], space, tie_rule, thresholds)
                if options.explain:
                    for result, explanation in zip(results, explanations[i : i + BLOCK], strict=True):
                        result["explanation"] = explanation
                if shadowed:
                    decisions.extend(result["odd_one_out"] for result in results)
                service.metrics.entropy.observe([result["entropy"] for result in results])
                for reason, count in Counter(result["abstained"] for result in results).items():
                    if reason:
                        service.metrics.abstentions.labels(reason).inc(count)
                yield results

        def build() -> dict[str, Any]:
            return head(model, options, fingerprint, usage(files)) | {
                "similarity": space.similarity,
                "temperature": space.temperature,
                "calibrated": space.calibrated,
                "tie_rule": tie_rule,
                "results": replies.array_of(judged()),
            }

        with timings.measure("serialise"):
            response = await replies.write_json(build, len(index) * vectors.shape[1])
        response.headers["X-Space-Fingerprint"] = fingerprint
        if shadowed:
            shadowed.offer(Answered(model, options.space, files, index, decisions, thresholds))
        return response


@contextlib.contextmanager
def _room_to_explain(
    options: OddOneOutOptions, given: Given, n: int, model: ServedModel, taken: Taken
) -> Iterator[None]:
    """Refuse an explanation of n triplets that cannot be had before anything is embedded for it.

    Raises:
        ServiceError: there are no images, too many triplets, no room for one more, or too little time.
    """
    if not options.explain:
        yield
        return
    if given.vectors is not None:
        detail = "explain covers parts of the images, and here are only vectors; send `images`."
        raise ServiceError("invalid_request", detail)
    if n > (most := taken.service.settings.max_explained_triplets):
        detail = f"{n} triplets with explain in one request; at most {most}."
        raise ServiceError("too_many_triplets", detail, limit=most)
    taken.be_patient()
    with taken.service.explaining.one():
        model.embedder.admission.require(len(given.images) + occlusion.pictures(n), taken.timings.until)
        yield


async def _explanations(
    answers: list[dict[str, Any]],
    vectors: NDArray[np.float64],
    files: list[bytes],
    space: str,
    model: ServedModel,
    taken: Taken,
) -> list[dict[str, Any] | None]:
    """Of each judgment that gave an answer, in their order."""
    manifest = model.manifest
    explained = sum(answer["odd_one_out"] is not None for answer in answers)
    taken.spend(1 + occlusion.pictures(explained))  # the request itself is paid for already
    out: list[dict[str, Any] | None] = []
    for answer in answers:
        triplet, odd = answer["triplet"], answer["odd_one_out"]
        if odd is None:
            out.append(None)
            continue
        explanation = await occlusion.explain(
            [files[i] for i in triplet],
            vectors[triplet],
            triplet.index(odd),
            triplet,
            (space, manifest.spaces[space]),
            manifest.pixels,
            model.embedder,
            taken.timings,
        )
        taken.service.metrics.explanations.inc()
        out.append(explanation)
    return out


async def _parse_odd_one_out(request: Request, taken: Taken) -> tuple[OddOneOutOptions, Given]:
    body, settings = taken.body, taken.service.settings
    intake.no_query(dict(request.query_params))
    if body.media_type == "multipart/form-data":
        fields, files = await intake.parse_form(body, settings, ["images"])
        values: dict[str, Any] = dict(fields)
        if "triplets" in fields:
            try:
                values["triplets"] = orjson.loads(fields["triplets"])
            except orjson.JSONDecodeError as error:
                raise ServiceError("invalid_json", f"field triplets: {error}.") from error
        options = intake.validate(OddOneOutOptions, values, settings)
        return options, Given(images=intake.files_under(files["images"], "images", settings.max_images))

    def parse() -> tuple[OddOneOutOptions, Given]:
        parsed = intake.parse_json(body, OddOneOutRequest, settings)
        return parsed, intake.given(parsed, taken.vector_size(parsed), settings)

    return cast(tuple[OddOneOutOptions, Given], await intake.in_thread_if_large(len(body.content), parse))
