"""Collections and their notes."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


@pytest.fixture
def shelf(api):
    made = api.create_collection("CroCo: første hylde", namespace="org", description="all of it")
    yield made
    api.delete_collection(made.slug, missing_ok=True)


def test_create_again(api, shelf):
    assert shelf.slug.startswith("org/croco-f")
    assert (
        api.create_collection("CroCo: første hylde", namespace="org", exists_ok=True).slug
        == shelf.slug
    )
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_collection("CroCo: første hylde", namespace="org")
    assert caught.value.response.status_code == 409
    assert api.get_collection(shelf.slug).description == "all of it"


def test_items_with_notes_in_an_order(api, shelf, repo):
    model = api.create_repo("org/on-the-shelf", exist_ok=True).repo_id
    api.add_collection_item(shelf.slug, repo, "dataset", note="the data")
    shelf = api.add_collection_item(shelf.slug, model, "model")
    assert [(item.item_id, item.item_type, item.note) for item in shelf.items] == [
        (repo, "dataset", "the data"),
        (model, "model", None),
    ]
    with pytest.raises(HfHubHTTPError) as caught:
        api.add_collection_item(shelf.slug, model, "model")
    assert caught.value.response.status_code == 409
    api.add_collection_item(shelf.slug, model, "model", exists_ok=True)
    api.update_collection_item(shelf.slug, shelf.items[1].item_object_id, note="new", position=0)
    shelf = api.get_collection(shelf.slug)
    assert [(item.item_id, item.note, item.position) for item in shelf.items] == [
        (model, "new", 0),
        (repo, "the data", 1),
    ]
    found = list(api.list_collections(owner="org", item=f"datasets/{repo}"))
    assert [item.slug for item in found] == [shelf.slug]
    assert list(api.list_collections(owner="nobody")) == []
    api.delete_collection_item(shelf.slug, shelf.items[0].item_object_id)
    api.delete_repo(repo, repo_type="dataset")
    assert api.get_collection(shelf.slug).items == []


@pytest.mark.parametrize(
    ("item", "kind"), [("org/absent", "dataset"), ("org/x", "space"), ("x", "model")]
)
def test_only_what_is_here_goes_on_a_shelf(api, shelf, item, kind):
    with pytest.raises(HfHubHTTPError) as caught:
        api.add_collection_item(shelf.slug, item, kind)
    assert caught.value.response.status_code == 404


def test_a_new_title_keeps_the_old_address(api, shelf):
    changed = api.update_collection_metadata(shelf.slug, title="Second", theme="pink", position=3)
    assert (changed.title, changed.theme, changed.position) == ("Second", "pink", 3)
    assert changed.slug.startswith("org/second-") and changed.slug[-24:] == shelf.slug[-24:]
    assert api.get_collection(shelf.slug).title == "Second"
    for bad in ({"title": ""}, {"title": "x" * 61}, {"description": "x" * 151}, {"theme": "beige"}):
        with pytest.raises(HfHubHTTPError):
            api.update_collection_metadata(shelf.slug, **bad)


def test_private_collections_and_private_items(hub, guests, api, shelf):
    eve = HfApi(endpoint=hub.url, token=guests.writer)
    api.create_repo("org/hidden-item", private=True, exist_ok=True)
    api.add_collection_item(shelf.slug, "org/hidden-item", "model")
    assert eve.get_collection(shelf.slug).items == []
    api.update_collection_metadata(shelf.slug, private=True)
    with pytest.raises(HfHubHTTPError) as caught:
        eve.get_collection(shelf.slug)
    assert caught.value.response.status_code == 404
    assert shelf.slug not in [item.slug for item in eve.list_collections()]


def test_missing(api):
    with pytest.raises(HfHubHTTPError):
        api.get_collection("org/none-0123456789abcdef01234567")
    api.delete_collection("org/none-0123456789abcdef01234567", missing_ok=True)
