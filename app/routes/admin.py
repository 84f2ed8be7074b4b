"""/admin: what an operator changes while the service runs. The paths exist only if `admin_keys` is set."""

from fastapi import APIRouter, Request

from app import errors, intake
from app.alias import Alias
from app.errors import ServiceError
from app.exchange import service_of
from app.schemas import AliasWeights, Reloaded

router = APIRouter(prefix="/admin")


@router.post(
    "/models/{name}/reload",
    response_model=Reloaded,
    responses=errors.responses("unauthorized", "model_not_found", "reload_refused", "not_ready"),
    summary="Serve the new version of a bundle",
)
async def reload(request: Request, name: str) -> Reloaded:
    """Read, verify and warm the bundle that is in the model's folder now, then switch to it.

    Requests that have begun are finished by the old version; no request is refused for the switch. If the
    new one cannot be served, the answer is 409 and the old one stays.
    """
    service = service_of(request)
    service.admin_keys.admit(request.headers.get("authorization"))
    old, new = await service.reload(name)
    return Reloaded(
        model=new.name,
        fingerprint=new.fingerprint,
        previous_fingerprint=old.fingerprint,
        changed=new is not old,
    )


@router.post(
    "/aliases/{name}",
    response_model=AliasWeights,
    responses=errors.responses(
        "invalid_json", "invalid_request", "unauthorized", "body_timeout", "body_too_large", "overloaded", "not_ready"
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AliasWeights"}}},
        }
    },
    summary="Split the traffic of a name",
)
async def set_alias(request: Request, name: str) -> AliasWeights:
    """Set the weights of an alias, or make one, until the process ends; the settings hold for the next one."""
    service = service_of(request)
    service.admin_keys.admit(request.headers.get("authorization"))
    with service.body_bytes.hold() as take:
        body = await intake.read_body(request, service.settings, service.body_bytes.require, take)
        given = intake.parse_json(body, AliasWeights, service.settings)
    try:
        service.set_alias(Alias(name, given.weights))
    except ValueError as error:
        raise ServiceError("invalid_request", f"{error}.") from error
    return given
