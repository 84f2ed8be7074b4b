"""POST /similarity: all pairs of a list, or queries against candidates."""

from typing import Any, cast

import numpy as np
from fastapi import APIRouter, Request, Response

from app import errors, intake, replies
from app.errors import ServiceError
from app.exchange import Taken, body_schema, fields_of, head, taken_in, usage, vectors_of
from app.intake import Given
from app.routes.request_route import RequestRoute
from app.schemas import Collection, SimilarityOptions, SimilarityReply, SimilarityRequest
from contract.triplets import similarity_matrix

router = APIRouter(route_class=RequestRoute)

_FILES = ["images", "queries", "candidates"]
_BODY = body_schema("SimilarityRequest", fields_of(SimilarityOptions), _FILES)


@router.post(
    "/similarity",
    response_model=SimilarityReply,
    responses=errors.responses(*errors.REQUEST_KINDS, "too_many_vectors"),
    openapi_extra=_BODY,
    summary="Similarities of all pairs, or of queries with candidates",
)
async def similarity(request: Request) -> Response:
    """Compare images or vectors: all pairs of one list, or every query with every candidate.

    Where an error names an index, candidates count on from the queries.
    """
    async with taken_in(request, raw=False) as taken:
        service, timings = taken.service, taken.timings
        with timings.measure("read"):
            options, sides = await _parse_similarity(request, taken)
        model = taken.model(options)
        fingerprint = model.space_fingerprint(options)
        # Queries and candidates are embedded together, so a photo on both sides is embedded once.
        images = [image for side in sides for image in side.images]
        errors.require_count(len(images), "images", service.settings.max_images)
        embedded, files = None, list[bytes]()
        if images:
            embedded, files = await vectors_of(model, Given(images=images), options.space, taken)
        matrices, start = [], 0
        for side in sides:
            if side.vectors is not None:
                matrices.append(side.vectors)
                continue
            assert embedded is not None
            matrices.append(embedded[start : start + len(side.images)])
            start += len(side.images)
        queries, candidates = matrices[0], matrices[-1]
        kernel = options.kernel or model.manifest.spaces[options.space].similarity
        if options.measure == "distance" and kernel == "dot":
            raise ServiceError("invalid_request", "a dot product has no distance; ask for `kernel` cosine or pearson.")

        def build() -> dict[str, Any]:
            matrix = similarity_matrix(queries, candidates, kernel)  # [n, m] float64
            if options.measure == "distance":
                matrix = 1 - matrix
            encoded: Any = matrix
            if options.encoding == "base64":
                if np.abs(matrix).max() > np.finfo(np.float32).max:
                    raise ServiceError("invalid_request", "a similarity is too large for float32; ask for `float`.")
                encoded = replies.float32_base64(matrix)
            answer: dict[str, Any] = {"kernel": kernel, "measure": options.measure, "shape": matrix.shape}
            answer |= {"encoding": options.encoding, "similarities": encoded}
            return head(model, options, fingerprint, usage(files)) | answer

        with timings.measure("serialise"):
            work = len(queries) * len(candidates) + queries.size + candidates.size
            response = await replies.write_json(build, work)
        response.headers["X-Space-Fingerprint"] = fingerprint
        return response


async def _parse_similarity(request: Request, taken: Taken) -> tuple[SimilarityOptions, list[Given]]:
    """Options, and one side (all pairs) or two (queries, candidates)."""
    body, settings = taken.body, taken.service.settings
    intake.no_query(dict(request.query_params))
    if body.media_type == "multipart/form-data":
        fields, files = await intake.parse_form(body, settings, _FILES)
        names = [name for name, images in files.items() if images]
        if names not in (["images"], ["queries", "candidates"]):
            expected = "expected files `images`, or both `queries` and `candidates`"
            raise ServiceError("invalid_request", f"files are given as {names}; {expected}.")
        sides = [Given(images=intake.files_under(files[name], name, settings.max_images)) for name in names]
        return intake.validate(SimilarityOptions, dict(fields), settings), sides

    def parse() -> tuple[SimilarityOptions, list[Given]]:
        parsed = intake.parse_json(body, SimilarityRequest, settings)
        size = taken.vector_size(parsed)
        if parsed.queries is not None and parsed.candidates is not None:
            queries = intake.given(parsed.queries, size, settings)
            return parsed, [queries, intake.given(parsed.candidates, size, settings, after=queries)]
        every = Collection.model_construct(images=parsed.images, vectors=parsed.vectors)
        return parsed, [intake.given(every, size, settings)]

    return cast(tuple[SimilarityOptions, list[Given]], await intake.in_thread_if_large(len(body.content), parse))
