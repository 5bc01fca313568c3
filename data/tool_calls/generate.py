"""Requests in English and the JSON tool calls they ask for.

    python data/tool_calls/generate.py        writes train, validation and test.jsonl beside this

Ten tools. No two of the three sets share a phrasing or a value: each tool keeps three phrasings,
and each slot every fifth of its values, for the test alone, and three phrasings and values from
lists of their own for the validation. The slots are wide, dozens to thousands of values, so that
what is learned is copying, not a list. Answers are copied, never computed.
"""
import functools
import itertools
import json
import random
from pathlib import Path

from minipeft.files import write_text

SEED = 5
SIZES = {"train": 2000, "test": 200, "validation": 100}
# Random streams: the first two are named as they were when the two sets were drawn
STREAMS = {"train": False, "test": True, "validation": "validation"}

CITIES = """Aarhus Accra Adelaide Agadir Amman Antwerp Athens Auckland Bamako Bangalore Basel Bergen
Bilbao Bogota Bologna Bordeaux Boston Bremen Brisbane Bruges Cairo Calgary Cardiff Chennai Chicago
Cologne Cork Dakar Dallas Delft Denver Dublin Durban Edinburgh Esbjerg Florence Fresno Geneva Genoa
Ghent Glasgow Granada Graz Hamburg Hanoi Havana Helsinki Houston Jakarta Kigali Kobe Krakow Lagos
Leeds Leipzig Lima Lisbon Liverpool London Lyon Madrid Malaga Manila Memphis Milan Montreal Nagoya
Nairobi Nantes Naples Nice Osaka Oslo Ottawa Oxford Palermo Paris Perth Porto Prague Quito Riga Rome
Rotterdam Salzburg Santiago Seattle Seoul Seville Sofia Stockholm Sydney Tampa Tokyo
Toronto Toulouse Tunis Turin Utrecht Valencia Vienna Vilnius Warsaw York Zagreb""".split()
NAMES = """Ada Agnes Alan Alice Amir Anna Anton Bella Ben Boris Carla Carlos Clara Conor Daisy Dana
David Diego Dora Edgar Ella Emil Emma Erik Eva Felix Fiona Frank Freya Gina Grace Greta Hana Hassan
Hazel Henry Hugo Ida Igor Ines Iris Isaac Ivan Jack Jana Jasper Joan Jonas Julia Kai Karen Karl Kate
Kofi Lara Laura Leo Liam Linda Lucas Lucy Maria Mark Marta Max Maya Mia Milo Mona Nadia Nina Noah
Nora Olga Oliver Omar Oscar Paula Peter Petra Priya Ravi Rita Robin Rosa Ruth Sam Sara Simon Sofia
Stella Sven Tara Theo Tina Tom Ursula Vera Victor Wanda Yusuf Zoe""".split()
ADJECTIVES = """amber blue broken burning calm crimson distant empty endless fading frozen gentle
golden hidden hollow lonely lost midnight quiet silver velvet wild winter yellow""".split()
NOUNS = """avenue birds bridge castle clouds desert engine fields fire garden harbor highway island
lantern letters mirror mountain ocean orchard rain river shadows station thunder train""".split()
ITEMS = """apples bananas bread butter candles carrots cheese chocolate coffee cookies crackers eggs
flour garlic grapes honey ketchup lemons lentils lettuce matches milk mushrooms napkins noodles nuts
oats olives onions oranges pasta peaches pears pepper potatoes raisins rice salt soap sponges sugar
tea tomatoes yogurt""".split()
CONTAINERS = "bags bottles boxes cans jars packs tins".split()
ROOMS = """attic balcony basement bathroom bedroom cellar corridor garage guest_room gym hall
hallway kitchen laundry library living_room lobby loft nursery office pantry patio playroom porch
sauna shed staircase studio study terrace workshop""".split()
UNITS = """acres calories centimeters cups euros feet gallons grams hectares inches joules kilograms
kilometers knots liters meters miles ounces pints pounds rupees stones tons yards yen""".split()
STREETS = "Avenue Lane Road Square Street".split()
MONTHS = """January February March April May June July August September October November
December""".split()
SUBJECTS = ["the bus", "the car", "the dog", "the doctor", "the game", "the landlord",
            "the meeting", "the oven", "the package", "the plumber", "the ticket", "the train",
            "the wifi", "my flight", "my knee", "my phone", "our boss", "our dinner", "our order",
            "your cat"]
STATES = ["is here", "is late", "is ready", "is broken again", "has arrived", "needs your help",
          "was great", "looks fine now", "is almost over", "can wait", "was cancelled",
          "will take an hour", "is in the kitchen", "made me laugh", "is back", "is on the way"]
OCCASIONS = ["breakfast", "coffee", "drinks", "golf", "lunch", "rehearsal", "tea", "tennis", "yoga"]


def joined(*parts) -> list[str]:
    """Every combination of the parts, with a space between."""
    return [" ".join(words) for words in itertools.product(*parts)]


def numbers(first: int, last: int) -> list[str]:
    return [str(n) for n in range(first, last + 1)]


SLOTS = {
    "time": [f"{hour}:{minute:02} {half}" for half in ("am", "pm") for hour in range(1, 13)
             for minute in range(0, 60, 5)],
    "date": joined(numbers(1, 28), MONTHS),
    "duration": joined(numbers(2, 90), ("seconds", "minutes", "hours")),
    "city": CITIES,
    "person": NAMES,
    "text": joined(SUBJECTS, STATES),
    "title": [title.title() for title in joined(ADJECTIVES, NOUNS)],
    "artist": [f"{first} {last.title()}" for first in NAMES for last in NOUNS],
    "room": [room.replace("_", " ") for room in ROOMS],
    "percent": numbers(1, 100),
    "amount": [f"{n / 10:g}" for n in range(11, 999)],
    "from": UNITS,
    "to": UNITS,
    "event": joined(OCCASIONS, ("with",), NAMES),
    "place": joined(numbers(1, 99), [word.title() for word in NOUNS], STREETS),
    "item": joined(CONTAINERS, ("of",), ITEMS),
    "count": numbers(2, 40),
}

# Values of the validation set; none is in SLOTS
NEW_NAMES = """Aaron Beatrice Cora Dennis Edith Farid Gloria Heidi Imran Jonathan Katya Lorenzo
Miriam Nelson Odette Pascal Quentin Renata Silvia Tobias""".split()
NEW_NOUNS = """anchor bicycle canyon dragon feather glacier horizon jungle kingdom lighthouse
meadow nightfall palace riddle sailor temple valley whisper zephyr""".split()
NEW_SLOTS = {
    "time": [f"{hour}:{minute:02} {half}" for half in ("am", "pm") for hour in range(1, 13)
             for minute in (3, 12, 28, 41, 57)],
    "date": joined(numbers(29, 30), [month for month in MONTHS if month != "February"]),
    "duration": joined(numbers(91, 150), ("seconds", "minutes", "hours")),
    "city": """Alicante Ankara Belfast Belgrade Bucharest Caracas Dresden Galway Izmir Kyoto
Lausanne Marseille Melbourne Mumbai Odense Phoenix Pretoria Reykjavik Tallinn Winnipeg""".split(),
    "person": NEW_NAMES,
    "text": joined(["the baker", "the bridge", "the choir", "the heating", "your coat",
                    "my bicycle"],
                   ["is almost finished", "starts at dawn", "looks wonderful", "was delayed",
                    "has to wait", "smells strange"]),
    "title": [title.title() for title in joined(
        "ancient bitter curious dusty electric fearless graceful humble jagged marble".split(),
        NEW_NOUNS)],
    "artist": [f"{first} {last.title()}" for first in NEW_NAMES for last in NEW_NOUNS],
    "room": ["archive", "bakery", "boathouse", "cabin", "chapel", "closet", "conservatory",
             "dining room", "greenhouse", "laboratory", "stable", "storeroom", "tool shed",
             "waiting room", "wine cellar"],
    "percent": [f"{n}.5" for n in range(1, 100)],
    "amount": [f"{n / 10:g}" for n in range(1001, 4000, 7)],
    "from": "bushels carats decades dollars fathoms furlongs gigabytes pesos quarts".split(),
    "to": "centuries degrees francs grains kelvins kilowatts milligrams newtons weeks".split(),
    "event": joined(["badminton", "brunch", "chess", "dinner", "pottery", "swimming"], ("with",),
                    NEW_NAMES),
    "place": joined(numbers(100, 199), [word.title() for word in NEW_NOUNS],
                    ("Boulevard", "Court", "Drive", "Terrace", "Way")),
    "item": joined("baskets bunches crates pots sacks tubes".split(), ("of",),
                   """almonds basil beans cherries figs ginger leeks mustard paprika plums
radishes spinach syrup turnips vinegar walnuts""".split()),
    "count": numbers(41, 90),
}

# tool: phrasings of the training, the test and the validation set, in the order of SIZES; the
# answer's keys are the slots in their order
PHRASINGS = {
    "alarm": (("wake me up at {time}", "set an alarm for {time}", "I need to get up at {time}",
               "alarm at {time}", "make sure I am awake by {time}", "ring at {time}",
               "get me out of bed at {time}"),
              ("could you wake me at {time}", "I want an alarm at {time}",
               "wake up call at {time}"),
              ("my day starts at {time}, wake me", "do not let me sleep past {time}",
               "let the alarm go off at {time}")),
    "timer": (("start a timer for {duration}", "count down {duration}", "timer {duration}",
               "tell me when {duration} are over", "let me know in {duration}",
               "give me {duration} on the clock", "set a {duration} timer"),
              ("I need a timer of {duration}", "run a countdown of {duration}",
               "beep after {duration}"),
              ("stop me after {duration}", "measure {duration} for me",
               "I have {duration}, tell me when they are up")),
    "weather": (("what is the weather in {city} on {date}", "will it rain in {city} on {date}",
                 "how warm is it in {city} on {date}", "forecast for {city}, {date}",
                 "do I need a coat in {city} on {date}", "is it sunny in {city} on {date}",
                 "weather report for {city} on {date}"),
                ("show me the forecast of {city} for {date}", "does it snow in {city} on {date}",
                 "how is the weather going to be in {city} on {date}"),
                ("what will {city} be like on {date}, sun or rain",
                 "is {date} a day for an umbrella in {city}",
                 "temperatures in {city} for {date}")),
    "message": (("tell {person} that {text}", "text {person} that {text}",
                 "let {person} know that {text}", "send {person} a message: {text}",
                 "message {person}: {text}", "write to {person} that {text}",
                 "inform {person} that {text}"),
                ("send a text to {person} saying {text}", "drop {person} a line: {text}",
                 "please tell my friend {person} that {text}"),
                ("pass on to {person} that {text}", "could {person} please hear that {text}",
                 "new message for {person}: {text}")),
    "music": (("play {title} by {artist}", "put on {title} by {artist}",
               "I want to hear {title} by {artist}", "start the song {title} from {artist}",
               "let me listen to {title} by {artist}", "queue {title} by {artist}",
               "find {title} by {artist} and play it"),
              ("could you play the track {title} by {artist}", "I feel like {title} by {artist}",
               "stream {title} from {artist}"),
              ("I would love to listen to {artist} with {title}", "next song: {title} by {artist}",
               "turn on {title}, the one by {artist}")),
    "light": (("set the {room} light to {percent} percent", "dim the {room} to {percent} percent",
               "{room} lights at {percent} percent", "turn the {room} lamp to {percent} percent",
               "make the {room} {percent} percent bright",
               "brightness {percent} percent in the {room}",
               "I want {percent} percent light in the {room}"),
              ("change the {room} light to {percent} percent",
               "put the lamps in the {room} at {percent} percent",
               "light the {room} at {percent} percent"),
              ("{percent} percent is enough light for the {room}",
               "bring the {room} down to {percent} percent",
               "the lamp of the {room} should be at {percent} percent")),
    "convert": (("convert {amount} {from} to {to}", "how many {to} are {amount} {from}",
                 "what is {amount} {from} in {to}", "{amount} {from} in {to}",
                 "change {amount} {from} into {to}", "give me {amount} {from} as {to}",
                 "express {amount} {from} in {to}"),
                ("turn {amount} {from} into {to}", "how much is {amount} {from} in {to}",
                 "I have {amount} {from}, what is that in {to}"),
                ("{amount} {from}, please in {to}", "tell me what {amount} {from} make in {to}",
                 "calculate {to} from {amount} {from}")),
    "calendar": (("add {event} on {date} at {time}", "schedule {event} for {date} at {time}",
                  "put {event} in my calendar on {date} at {time}",
                  "I have {event} on {date} at {time}", "book {event} on {date}, {time}",
                  "plan {event} on {date} at {time}", "save the date: {event}, {date}, {time}"),
                 ("create an entry for {event} on {date} at {time}",
                  "note down {event} on {date} at {time}",
                  "my calendar needs {event} on {date} at {time}"),
                 ("on {date} at {time} there is {event}",
                  "do not let me miss {event} on {date} at {time}",
                  "block {time} on {date} for {event}")),
    "navigate": (("take me to {place}", "directions to {place}", "how do I get to {place}",
                  "navigate to {place}", "show me the way to {place}", "drive to {place}",
                  "find a route to {place}"),
                 ("guide me to {place}", "I have to go to {place}",
                  "what is the fastest way to {place}"),
                 ("which road leads to {place}", "I am lost, bring me to {place}",
                  "my next stop is {place}")),
    "shopping": (("add {count} {item} to my shopping list", "we need {count} {item}",
                  "put {count} {item} on the list", "buy {count} {item}",
                  "remember to get {count} {item}", "I am out of stock, get {count} {item}",
                  "order {count} {item}"),
                 ("shopping list: {count} {item}", "could you note {count} {item} for shopping",
                  "please pick up {count} {item}"),
                 ("the next time I shop I need {count} {item}",
                  "{count} {item} are missing at home", "can you get me {count} {item}")),
}
OPENINGS = ("", "", "", "please ", "hey, ", "ok, ")


def slot_names(phrasing: str) -> list[str]:
    """The slots of a phrasing, in the order of SLOTS: the order of the answer's keys."""
    return [name for name in SLOTS if "{" + name + "}" in phrasing]


@functools.cache
def values(slot: str, part: str) -> list[str]:
    """The values of one of the sets: every fifth, in a mixed order, is for the test alone."""
    if part == "validation":
        return NEW_SLOTS[slot]
    order = sorted(set(SLOTS[slot]))
    random.Random(0).shuffle(order)                # the partition must not depend on SEED
    test = set(order[::5])
    return [value for value in order if (value in test) == (part == "test")]


def example(tool: str, part: str, rng: random.Random) -> dict[str, str]:
    phrasing = rng.choice(PHRASINGS[tool][list(SIZES).index(part)])
    call = {}
    for name in slot_names(phrasing):              # never "feet in feet"
        call[name] = rng.choice([v for v in values(name, part) if v not in call.values()])
    request = rng.choice(OPENINGS) + phrasing.format(**call)
    if rng.random() < 0.5:
        request = request[0].upper() + request[1:]
    return {"prompt": request, "completion": json.dumps({"tool": tool, **call})}


def examples(part: str) -> list[dict[str, str]]:
    """As many different examples as that set has, the tools in turn."""
    rng, found, tools = random.Random(f"{SEED} {STREAMS[part]}"), {}, itertools.cycle(PHRASINGS)
    while len(found) < SIZES[part]:
        new = example(next(tools), part, rng)
        found[new["prompt"].lower()] = new
    return list(found.values())


def main(folder: Path = Path(__file__).parent) -> None:
    for part in SIZES:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in examples(part)]
        write_text(folder / f"{part}.jsonl", "".join(lines))


if __name__ == "__main__":
    main()
