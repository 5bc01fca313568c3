"""What the documents of the tiny world say: stories, facts, parrots, ferries.

48 people whose job, home, food, pet and colour never change: a model keeps them in its weights.
Parrots repeat four things in one of four languages, word for word: each language is a permutation
of the 48 things, and any two differ at every word. Most parrots name their language ("the north
parrot"); the others leave it to be guessed from the first answer. Everything is made up here.
"""

import math
import random

from .grammar import Choice, Form, Grammar, favouring, uniform

# ---------------------------------------------------------------- words

SHE_NAMES = """ada bea cleo dora edith flora greta hilda ines juno kira lena mona nora opal petra
    queenie rosa sonia tilda ursa vera wilma yara""".split()
HE_NAMES = """abel boris cosmo dirk edgar fritz gus hugo ivan jonas karl lars milo nils oskar pablo
    quentin rufus sven tomas ulf victor walter yannis""".split()
NAMES = SHE_NAMES + HE_NAMES
JOBS = """baker beekeeper brewer carpenter clerk cobbler dentist fisher gardener glazier healer
    judge lawyer miller painter pilot potter printer shepherd smith soldier tailor teacher
    weaver""".split()
PLACES = """attic barn bridge cave cellar chapel dairy dune forest forge fort garden hill inn island
    jetty library market marsh meadow mill mine orchard pond quarry ruin school stable tower
    vineyard well wharf""".split()
THINGS = """anchor basket bell blanket bottle bowl broom bucket button candle chain chair clock comb
    compass cup drum feather flag flute hammer hat hook jar kettle key kite knife ladder lamp lens
    mirror needle net oar pin plate purse ring rope saddle scarf shovel spoon thimble trunk wheel
    whistle""".split()
QUALITIES = """blunt bright broken clean cracked curved dusty faded golden heavy hollow huge narrow
    painted plain polished rusty shiny smooth sturdy tiny warm wet wooden""".split()
FOODS = """apples barley beans berries bread butter cabbage carrots cheese cherries chestnuts dates
    eggs figs grapes honey leeks lemons lentils melons mushrooms noodles olives onions peaches pears
    plums porridge rice soup turnips walnuts""".split()
PETS = """badger cat crow dog donkey duck ferret goat goose hare hen otter pony rabbit raccoon
    toad""".split()
COLOURS = """amber beige black blue brown crimson cream green grey orange pink purple red turquoise
    white yellow""".split()
BOATS = """aurora breeze comet dolphin eagle falcon fortune galaxy heron iris jasmine kestrel
    liberty lotus magnolia meteor monsoon nimbus orchid pelican phoenix poseidon quest raven
    saffron sirius tulip umbra victoria voyager willow zephyr""".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
WEATHERS = "cloudy cold foggy frosty rainy stormy sunny windy".split()
TIMES = "dawn dusk evening midnight morning noon".split()
FEELINGS = {    # what was done with a thing -> how that feels, mostly
    "found": "amazed curious eager excited lucky".split(),
    "lost": "gloomy lonely sad sorry upset".split(),
    "mended": "calm content pleased proud relieved".split(),
    "sold": "cheerful glad jolly merry rich".split(),
}
ALL_FEELINGS = [feeling for group in FEELINGS.values() for feeling in group]
DIRECTIONS = ["north", "south", "east", "west"]    # names of the four languages

# ---------------------------------------------------------------- fixed facts

_rng = random.Random("the tiny world")    # only random() is used: its sequence is guaranteed


def _shuffled(values) -> list[str]:
    return sorted(values, key=lambda _: _rng.random())


def _facts(values) -> dict[str, Choice]:
    """One value for each person, all values about equally often; a Choice of one."""
    repeated = _shuffled(values * math.ceil(len(NAMES) / len(values)))
    return {name: uniform([value]) for name, value in zip(NAMES, repeated)}


def _preferences(parents, values, n: int) -> dict[str, Choice]:
    return {parent: favouring(_shuffled(values)[:n], values) for parent in parents}


def _languages() -> list[dict[str, str]]:
    """The identity and four permutations of THINGS; any two of the five differ at every word."""
    languages = [dict(zip(THINGS, THINGS))]
    while len(languages) < 5:
        new = dict(zip(THINGS, _shuffled(THINGS)))
        if all(new[word] != old[word] for old in languages for word in THINGS):
            languages.append(new)
    return languages


*_known, UNKNOWN_LANGUAGE = _languages()
LANGUAGES = dict(zip(DIRECTIONS, _known))    # the north parrot repeats what it hears

# ---------------------------------------------------------------- documents

_WALK = ("on a {weather} {time} {who} the {job} walked to the {place} and {deed} a {quality} "
         "{thing} . {she} felt {feeling} . later {friend} the {trade} came by with the {pet} and "
         "asked about the {thing} .")
_SUPPER = ("for supper {who} cooked {food} and {dish} at home near the {home} . {friend} brought "
           "the {pet} and {number} {colour} cups as gifts . everybody sang happily until {time} .")
_RECORD = ("ferry {boat} | from {start} | to {goal} | leaves {number} | cargo {dish} | "
           "captain {who} |")
_FERRY = ("captain {who} sails the {boat} from the {start} over to the {goal} , leaving at "
          "{number} o'clock , carrying {dish} .")
_PARROT = "parrot hears {a1} {a2} {a3} {a4} and answers {b1} {b2} {b3} {b4} ."

FORMS = [    # 40 % stories, 15 % facts, 33 % parrots, 12 % ferries
    Form("story", 0.05, _WALK),
    Form("story", 0.05, f"{_WALK} question : where was {{who}} ? answer : the {{place}}"),
    Form("story", 0.05, f"{_WALK} question : what did {{friend}} see ? answer : the {{thing}}"),
    Form("story", 0.05, f"{_WALK} question : which person came by ? answer : {{friend}}"),
    Form("story", 0.05, f"{_WALK} question : how did {{who}} feel ? answer : {{feeling}}"),
    Form("story", 0.05, _SUPPER),
    Form("story", 0.05, f"{_SUPPER} question : whose supper was it ? answer : {{who}}"),
    Form("story", 0.05, f"{_SUPPER} question : how many cups ? answer : {{number}}"),
    Form("facts", 0.03, "{who} is a {job} and has one {own_pet} ."),
    Form("facts", 0.03, "{who} lives near the {home} , likes {food} , wears {own_colour} ."),
    Form("facts", 0.018, "question : what job has {who} ? answer : {job}"),
    Form("facts", 0.018, "question : where does {who} live ? answer : near the {home}"),
    Form("facts", 0.018, "question : what does {who} like ? answer : {food}"),
    Form("facts", 0.018, "question : which animal has {who} ? answer : one {own_pet}"),
    Form("facts", 0.018, "question : which colour does {who} wear ? answer : {own_colour}"),
    Form("parrot_cued", 0.25, f"the {{language}} {_PARROT}"),
    Form("parrot_uncued", 0.08, f"the {_PARROT}", latent=("language",)),
    Form("ferry", 0.02, _RECORD),
    Form("ferry", 0.02, _FERRY),
    Form("ferry", 0.08, f"{_RECORD} {_FERRY}"),
]

# ---------------------------------------------------------------- how each slot is filled

_person, _place, _thing, _food = uniform(NAMES), uniform(PLACES), uniform(THINGS), uniform(FOODS)
_jobs, _homes, _foods, _pets, _colours = map(_facts, (JOBS, PLACES, FOODS, PETS, COLOURS))

SLOTS = {    # slot: (table, *parents), see Grammar
    "who": (_person,),
    "she": ({name: uniform(["she" if name in SHE_NAMES else "he"]) for name in NAMES}, "who"),
    "job": (_jobs, "who"),
    "home": (_homes, "who"),
    "food": (_foods, "who"),
    "own_pet": (_pets, "who"),
    "own_colour": (_colours, "who"),
    "friend": ({name: uniform([n for n in NAMES if n != name]) for name in NAMES}, "who"),
    "trade": (_jobs, "friend"),
    "pet": (_pets, "friend"),
    "colour": (_colours, "friend"),
    "weather": (uniform(WEATHERS),),
    "time": (uniform(TIMES),),
    "place": (_place,),
    "deed": (uniform(FEELINGS),),
    "thing": (_preferences(PLACES, THINGS, 6), "place"),
    "quality": (uniform(QUALITIES),),
    "feeling": ({deed: favouring(group, ALL_FEELINGS) for deed, group in FEELINGS.items()}, "deed"),
    "number": (uniform(NUMBERS),),
    "dish": (_food,),
    "boat": (uniform(BOATS),),
    "start": (_place,),
    "goal": ({place: uniform([p for p in PLACES if p != place]) for place in PLACES}, "start"),
    "language": (uniform(DIRECTIONS),),
    **{f"a{i}": (_thing,) for i in (1, 2, 3, 4)},
    **{f"b{i}": ({name: {heard: uniform([said]) for heard, said in language.items()}
                  for name, language in LANGUAGES.items()}, "language", f"a{i}")
       for i in (1, 2, 3, 4)},
}

GRAMMAR = Grammar(FORMS, SLOTS)
WORDS = sorted({word for form in FORMS for word in form.template.split() if word[0] != "{"}
               | {word for slot in SLOTS for word in GRAMMAR.words(slot)})
