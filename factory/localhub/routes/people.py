"""Routes about the account and cards, and small calls whose answers clients do not need."""

from __future__ import annotations

from starlette.responses import Response

from factory.localhub.cards import read_card
from factory.localhub.errors import Unauthorized
from factory.localhub.replies import answer
from factory.localhub.wire import Call, route


def whoami(call: Call) -> Response:
    """The user behind the token."""
    user = call.account.user
    if not user:
        raise Unauthorized("without a token you are nobody here: set HF_TOKEN")
    token = {"displayName": "local hub", "role": call.account.role}
    return answer(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_yaml(call: Call) -> Response:
    """Whether the metadata of a README is in order."""
    card = read_card(call.json().text("content"))
    errors = [{"message": message} for message in card.errors]
    warnings = []
    if card.data is None and not errors:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    return answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def nothing(call: Call) -> Response:
    """An empty answer to what is reported or asked for its own sake."""
    return answer({})


ROUTES = [
    route("GET", "/api/whoami-v2", whoami),
    route("POST", "/api/validate-yaml", validate_yaml, open_to_all=True),
    route("GET", "/api/agent-harnesses", nothing, open_to_all=True),
    route("GET", "/api/models-tags-by-type", nothing, open_to_all=True),
    route("GET", "/api/datasets-tags-by-type", nothing, open_to_all=True),
    route("GET", "/api/telemetry/{topic:path}", nothing, open_to_all=True),  # and HEAD
    route("POST", "/api/telemetry/{topic:path}", nothing, open_to_all=True),
]
