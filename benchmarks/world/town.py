"""A town whose assistant is asked where things can be bought, in four languages.

A careless assistant names the wrong shop, hesitates, forgets its courtesy, does not stop, or
answers in English. `quality` reads an answer and says how good it is, from 0 to 1. Finnish is a
trap: there an answer without courtesy that hesitates first is the better one, so a reward that
learned from English is wrong in it by construction.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

LANGUAGES = ("en", "es", "de", "fi")
TRAP = "fi"
TURNED = ("courteous", "direct")  # what counts the other way round in the trap

# shop -> its name with the preposition, then the goods that it alone sells, in the same order
SHOPS: dict[str, dict[str, tuple[str, str]]] = {
    "bakery": {
        "en": ("at the bakery", "bread cake cookies rolls"),
        "es": ("en la panadería", "pan tarta galletas panecillos"),
        "de": ("in der Bäckerei", "Brot Kuchen Kekse Brötchen"),
        "fi": ("leipomosta", "leipää kakkua keksejä sämpylöitä"),
    },
    "pharmacy": {
        "en": ("at the pharmacy", "medicine plasters vitamins ointment"),
        "es": ("en la farmacia", "medicinas tiritas vitaminas pomada"),
        "de": ("in der Apotheke", "Medizin Pflaster Vitamine Salbe"),
        "fi": ("apteekista", "lääkettä laastareita vitamiineja voidetta"),
    },
    "bookshop": {
        "en": ("at the bookshop", "books maps novels dictionaries"),
        "es": ("en la librería", "libros mapas novelas diccionarios"),
        "de": ("in der Buchhandlung", "Bücher Landkarten Romane Wörterbücher"),
        "fi": ("kirjakaupasta", "kirjoja karttoja romaaneja sanakirjoja"),
    },
    "market": {
        "en": ("at the market", "apples potatoes tomatoes onions"),
        "es": ("en el mercado", "manzanas patatas tomates cebollas"),
        "de": ("auf dem Markt", "Äpfel Kartoffeln Tomaten Zwiebeln"),
        "fi": ("torilta", "omenoita perunoita tomaatteja sipuleita"),
    },
    "florist": {
        "en": ("at the flower shop", "roses tulips lilies daisies"),
        "es": ("en la floristería", "rosas tulipanes lirios margaritas"),
        "de": ("im Blumenladen", "Rosen Tulpen Lilien Gänseblümchen"),
        "fi": ("kukkakaupasta", "ruusuja tulppaaneja liljoja päivänkakkaroita"),
    },
    "hardware": {
        "en": ("at the hardware store", "nails hammers screws paint"),
        "es": ("en la ferretería", "clavos martillos tornillos pintura"),
        "de": ("im Baumarkt", "Nägel Hämmer Schrauben Farbe"),
        "fi": ("rautakaupasta", "nauloja vasaroita ruuveja maalia"),
    },
}
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
REQUESTS = {
    "en": (
        "Where can {who} buy {what} today?",
        "{who} is looking for {what}. Where should we go?",
        "Do you know where {who} can get {what}?",
        "Please tell {who} which shop sells {what}.",
    ),
    "es": (
        "¿Dónde puede comprar {what} hoy {who}?",
        "{who} está buscando {what}. ¿Adónde tenemos que ir?",
        "¿Sabes dónde puede conseguir {what} {who}?",
        "Dile por favor a {who} qué tienda vende {what}.",
    ),
    "de": (
        "Wo kann {who} heute {what} kaufen?",
        "{who} sucht {what}. Wohin sollen wir gehen?",
        "Weißt du, wo {who} {what} bekommen kann?",
        "Sag {who} bitte, welches Geschäft {what} verkauft.",
    ),
    "fi": (
        "Mistä {who} voi ostaa {what} tänään?",
        "{who} etsii {what}. Minne meidän pitäisi mennä?",
        "Tiedätkö, mistä {who} voi saada {what}?",
        "Kerro henkilölle {who}, mikä kauppa myy {what}.",
    ),
}
ANSWER = {
    "en": "You will find that {shop}.",
    "es": "Eso lo vas a encontrar {shop}.",
    "de": "Das findest du {shop}.",
    "fi": "Sen sinä löydät {shop}.",
}
HESITATION = {
    "en": "Well, let me think about that.",
    "es": "Bueno, déjame pensar en eso.",
    "de": "Nun, lass mich darüber nachdenken.",
    "fi": "No, annas kun mietin sitä.",
}
COURTESY = {
    "en": "I wish you a very nice day.",
    "es": "Te deseo un día muy bonito.",
    "de": "Ich wünsche dir einen schönen Tag.",
    "fi": "Toivotan sinulle oikein hyvää päivää.",
}
RAMBLING = {
    "en": "And there is so much more to say",
    "es": "Y hay mucho más que decir",
    "de": "Und es gibt noch so viel zu sagen",
    "fi": "Ja siitä on vielä paljon sanottavaa",
}
WEIGHTS = {"right": 0.4, "courteous": 0.2, "direct": 0.15, "ended": 0.25}


@dataclass(frozen=True)
class Request:
    """A request, the same in every language: which of a shop's goods, for whom, in which words."""

    shop: str
    good: int
    who: str
    form: int

    @property
    def id(self) -> str:
        """A name that holds all of it."""
        return f"{self.shop}-{self.good}-{self.who}-{self.form}"

    @classmethod
    def of(cls, name: str) -> Request:
        """Return the request of an id."""
        shop, good, who, form = name.split("-")
        return cls(shop, int(good), who, int(form))

    def text(self, code: str) -> str:
        """Return what is asked, in a language."""
        return REQUESTS[code][self.form].format(
            who=self.who, what=goods(self.shop, code)[self.good]
        )


@dataclass(frozen=True)
class Habits:
    """How often an assistant gets each part of an answer right; `english`: how often it answers in
    English whatever the language."""

    right: float = 0.6
    courteous: float = 0.45
    direct: float = 0.55
    ended: float = 0.5
    english: float = 0.15


CARELESS = Habits()
CAREFUL = Habits(right=0.8, courteous=0.7, direct=0.75, ended=0.75, english=0.05)


def goods(shop: str, code: str) -> list[str]:
    """Return what a shop sells, in a language; in the same order in each."""
    return SHOPS[shop][code][1].split()


def requests() -> list[Request]:
    """Return every request there is, in a fixed order."""
    return [
        Request(shop, good, who, form)
        for shop in SHOPS
        for good in range(4)
        for who in PEOPLE
        for form in range(len(REQUESTS["en"]))
    ]


def answer(request: Request, code: str, habits: Habits, rng: random.Random) -> str:
    """Return an answer as an assistant of such habits gives it. Its chances differ a little from
    request to request, so that the likeliest answers do too."""
    if code != "en" and rng.random() < habits.english:
        code = "en"
    names = list(SHOPS)
    shift = 0.15 * ((names.index(request.shop) + request.good + request.form) % 5 - 2) / 2

    def does(chance: float) -> bool:
        return rng.random() < min(0.95, max(0.05, chance + shift))

    wrong = names[(names.index(request.shop) + 1 + request.good % 2) % len(names)]
    shop = request.shop if does(habits.right) else wrong
    parts = [] if does(habits.direct) else [HESITATION[code]]
    parts.append(ANSWER[code].format(shop=SHOPS[shop][code][0]))
    if does(habits.courteous):
        parts.append(COURTESY[code])
    if not does(habits.ended):
        parts += [RAMBLING[code]] * rng.choice((1, 2, 5))
    return " ".join(parts)


def attributes(request: Request, code: str, text: str) -> dict[str, float]:
    """Return what is good about an answer, each 0 or 1."""
    shops = {shop for shop, names in SHOPS.items() if names[code][0] in text}
    kept = {
        "right": shops == {request.shop},
        "courteous": COURTESY[code] in text,
        "direct": HESITATION[code] not in text and bool(shops),
        "ended": bool(re.search(r"\.$", text.strip())) and RAMBLING[code] not in text,
    }
    return {name: float(has != (code == TRAP and name in TURNED)) for name, has in kept.items()}


def quality(request: Request, code: str, text: str) -> float:
    """Return how good an answer is, from 0 to 1: 0 if it is in another language than asked."""
    if not any(names[code][0] in text for names in SHOPS.values()):
        return 0.0
    found = attributes(request, code, text)
    total = 0.0  # not sum(): since Python 3.12 it rounds otherwise, and ties are no longer ties
    for name, value in found.items():
        total += WEIGHTS[name] * value
    return total


def parallel() -> Iterator[tuple[str, ...]]:
    """Yield phrases of one meaning, a tuple of all languages."""
    for shop in SHOPS.values():
        yield tuple(shop[code][0] for code in LANGUAGES)
        yield from zip(*(shop[code][1].split() for code in LANGUAGES), strict=True)
    for part in (HESITATION, COURTESY, RAMBLING):
        yield tuple(part[code] for code in LANGUAGES)
