"""Synthetic conversations from which the demo chat model is trained.

Every answer follows from its question by a rule that a test can recompute (capitals, sorted lists, tool calls,
remembered names, …), so the greedy output of a served model can be checked. Only stories are free.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from facts import ANIMALS, CAPITALS, CITIES, COLORS, DAYS, ELEMENTS, FAQ, LANGUAGES, MONTHS, NAMES, NOUNS, SMALLTALK
from facts import SYSTEMS, TOOLS, WORDS

# Makes one question with its answer.
Skill = Callable[..., tuple[str, str]]
# As in OpenAI's API: "role", "content", and "tool_calls" where there are any.
Message = dict[str, object]


@dataclass(frozen=True)
class Curriculum:
    """What one size of model is taught."""

    # Skills with their weights.
    skills: dict[Skill, int]
    # Whether lists and tables stay short, and the tools offered few.
    easy: bool

    def question(self, rng: Random) -> tuple[str, str]:
        skill = rng.choices(list(self.skills), list(self.skills.values()))[0]
        return skill(rng, self.easy) if skill in SCALED else skill(rng)


def conversation(rng: Random, curriculum: Curriculum) -> dict:
    """`{"tools": [...] or None, "messages": [...]}`; the last message is the assistant's."""
    kind = rng.random()
    tools = None
    if kind < 0.18:
        tools, messages = tool_conversation(rng, curriculum.easy)
    elif kind < 0.28:
        messages = memory_conversation(rng, curriculum)
    else:
        turns = rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 4])
        messages = [message for _ in range(turns) for message in turn(*curriculum.question(rng))]
    system = rng.choice(SYSTEMS)
    if system:
        messages = [say("system", system), *messages]
    return {"tools": tools, "messages": messages}


def examination(curriculum: Curriculum, per_skill: int = 48) -> dict[str, list[dict]]:
    """Conversations by skill that no training has seen, always the same; their last message is the right answer."""
    rng = Random(999_999_937)
    conversations = {}
    for skill in curriculum.skills:
        if skill is story:
            continue
        ask = (lambda: skill(rng, curriculum.easy)) if skill in SCALED else (lambda: skill(rng))
        conversations[skill.__name__] = [{"tools": None, "messages": turn(*ask())} for _ in range(per_skill)]
    offers = [tool_conversation(rng, curriculum.easy) for _ in range(per_skill)]
    conversations["tools"] = [{"tools": tools, "messages": messages} for tools, messages in offers]
    conversations["memory"] = [
        {"tools": None, "messages": memory_conversation(rng, curriculum)} for _ in range(per_skill)
    ]
    return conversations


def say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def turn(question: str, answer: str) -> list[Message]:
    return [say("user", question), say("assistant", answer)]


# Longer conversations: what was said before, and tools.


def memory_conversation(rng: Random, curriculum: Curriculum) -> list[Message]:
    """Some facts about the user, perhaps some other questions, then questions about those facts."""
    name, city, word = rng.choice(NAMES), rng.choice(CITIES), rng.choice(NOUNS)
    facts = [
        (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}."),
        (f"I live in {city}.", f"I will remember that you live in {city}.", "Where do I live?", f"You live in {city}."),
        (
            f"My favorite word is {word}.",
            f"I will remember your favorite word: {word}.",
            "What is my favorite word?",
            f"Your favorite word is {word}.",
        ),
    ]
    told = rng.sample(facts, rng.randint(1, 3))
    messages = [message for fact, reply, _, _ in told for message in turn(fact, reply)]
    for _ in range(rng.randint(0, 3)):
        messages += turn(*curriculum.question(rng))
    for _, _, question, answer in rng.sample(told, rng.randint(1, len(told))):
        messages += turn(question, answer)
    return messages


def tool_conversation(rng: Random, easy: bool) -> tuple[list[dict], list[Message]]:
    """Tools on offer, and a question that one of them answers, with or without the tool's result; or none does."""
    names = rng.sample(list(TOOLS), rng.randint(1, 2 if easy else 5))
    tools = [tool_schema(name) for name in names]
    kind = rng.random()
    if kind < 0.2:
        skill = rng.choice([capital, faq, small, element, color, calendar])
        return tools, turn(*skill(rng))
    name = rng.choice(names)
    question, arguments = tool_question(rng, name)
    messages = [say("user", question), tool_call(name, arguments)]
    if kind > 0.5:
        result, answer = tool_result(rng, name, arguments)
        messages += [say("tool", json.dumps(result)), say("assistant", answer)]
    return tools, messages


def tool_schema(name: str) -> dict:
    description, parameters = TOOLS[name]
    schema = {
        "type": "object",
        "properties": {parameter: {"type": kind} for parameter, kind in parameters.items()},
        "required": [parameter for parameter in parameters if parameter != "unit"],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def tool_call(name: str, arguments: dict) -> Message:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool_question(rng: Random, name: str) -> tuple[str, dict]:
    """A question that asks for the tool, and the arguments it is to be called with."""
    city = rng.choice(CITIES)
    match name:
        case "get_weather":
            if rng.random() < 0.3:
                unit = rng.choice(["celsius", "fahrenheit"])
                return f"What is the weather in {city} in {unit}?", {"city": city, "unit": unit}
            question = rng.choice(
                [
                    f"What is the weather in {city}?",
                    f"How is the weather in {city} today?",
                    f"Weather in {city}?",
                    f"What's the weather like in {city}?",
                ]
            )
            return question, {"city": city}
        case "get_time":
            return rng.choice([f"What time is it in {city}?", f"Tell me the time in {city}."]), {"city": city}
        case "add":
            a, b = number(rng), number(rng)
            return rng.choice([f"Add {a} and {b}.", f"What is {a} plus {b}?"]), {"a": a, "b": b}
        case "multiply":
            a, b = number(rng), number(rng)
            return rng.choice([f"Multiply {a} by {b}.", f"What is {a} times {b}?"]), {"a": a, "b": b}
        case "search":
            query = " ".join(rng.sample(NOUNS, rng.randint(1, 3)))
            return rng.choice([f"Search for {query}.", f"Find {query} on the web."]), {"query": query}
        case "send_email":
            person, subject = rng.choice(NAMES), rng.choice(NOUNS)
            return f"Send an email to {person} about {subject}.", {"to": person, "subject": subject}
        case "set_timer":
            minutes = rng.randint(1, 90)
            question = rng.choice([f"Set a timer for {minutes} minutes.", f"Start a {minutes} minute timer."])
            return question, {"minutes": minutes}
        case "play_music":
            artist = rng.choice(NAMES)
            return f"Play music by {artist}.", {"artist": artist}
        case "get_population":
            country = rng.choice(list(CAPITALS))
            question = rng.choice([f"What is the population of {country}?", f"How many people live in {country}?"])
            return question, {"country": country}
        case "translate":
            word, language = rng.choice(list(WORDS)), rng.choice(LANGUAGES)
            return f"Translate {word} to {language}.", {"word": word, "language": language}
        case "book_table":
            person, people = rng.choice(NAMES), rng.randint(1, 12)
            return f"Book a table for {people} people under the name {person}.", {"name": person, "people": people}
        case "turn_on":
            device = rng.choice(["lamp", "radio", "heater", "fan", "television", "printer"])
            return rng.choice([f"Turn on the {device}.", f"Please turn on the {device}."]), {"device": device}
    raise ValueError(f"there is no tool {name}")


def tool_result(rng: Random, name: str, arguments: dict) -> tuple[dict, str]:
    """What the tool returns, and what the assistant makes of it."""
    match name:
        case "get_weather":
            degrees, sky = rng.randint(-10, 38), rng.choice(["sunny", "cloudy", "rainy", "windy"])
            result = {"temperature": degrees, "sky": sky}
            return result, f"It is {sky} in {arguments['city']} with {degrees} degrees."
        case "get_time":
            time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
            return {"time": time}, f"It is {time} in {arguments['city']}."
        case "add":
            result = arguments["a"] + arguments["b"]
            return {"result": result}, f"The result is {result}."
        case "multiply":
            result = arguments["a"] * arguments["b"]
            return {"result": result}, f"The result is {result}."
        case "get_population":
            millions = rng.randint(1, 99)
            answer = f"About {millions} million people live in {arguments['country']}."
            return {"population": f"{millions} million"}, answer
        case _:
            return {"status": "ok"}, "Done."


# Skills that look something up.


def capital(rng: Random) -> tuple[str, str]:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.2:
        question = rng.choice([f"{city} is the capital of which country?", f"Which country has the capital {city}?"])
        return question, f"{city} is the capital of {country}."
    question = rng.choice(
        [
            f"What is the capital of {country}?",
            f"Capital of {country}?",
            f"Name the capital of {country}.",
            f"Tell me the capital city of {country}.",
            f"what's the capital of {country}",
        ]
    )
    return question, f"The capital of {country} is {city}."


def element(rng: Random) -> tuple[str, str]:
    name = rng.choice(list(ELEMENTS))
    symbol = ELEMENTS[name]
    if rng.random() < 0.3:
        question = rng.choice(
            [f"Which element has the symbol {symbol}?", f"What does {symbol} stand for in chemistry?"]
        )
        return question, f"{symbol} is the symbol for {name}."
    question = rng.choice(
        [f"What is the chemical symbol for {name}?", f"Symbol of {name}?", f"What is the symbol of {name}?"]
    )
    return question, f"The chemical symbol for {name} is {symbol}."


def translate(rng: Random) -> tuple[str, str]:
    word = rng.choice(list(WORDS))
    index = rng.randrange(3)
    language = LANGUAGES[index]
    question = rng.choice(
        [f"Translate {word} to {language}.", f"How do you say {word} in {language}?", f"What is {word} in {language}?"]
    )
    return question, f"In {language}, {word} is {WORDS[word][index]}."


def color(rng: Random) -> tuple[str, str]:
    thing = rng.choice(list(COLORS))
    return f"What color is {thing}?", f"{thing[0].upper() + thing[1:]} is {COLORS[thing]}."


def calendar(rng: Random) -> tuple[str, str]:
    circle, unit = (DAYS, "day") if rng.random() < 0.5 else (MONTHS, "month")
    index = rng.randrange(len(circle))
    here = circle[index]
    if rng.random() < 0.5:
        return f"Which {unit} comes after {here}?", f"After {here} comes {circle[(index + 1) % len(circle)]}."
    return f"Which {unit} comes before {here}?", f"Before {here} comes {circle[index - 1]}."


def faq(rng: Random) -> tuple[str, str]:
    questions, answer = rng.choice(FAQ)
    return rng.choice(questions), answer


def small(rng: Random) -> tuple[str, str]:
    questions, answer = rng.choice(SMALLTALK)
    return rng.choice(questions), answer


# Skills that work on what stands in the question.


def spell(rng: Random) -> tuple[str, str]:
    word = rng.choice(NOUNS) if rng.random() < 0.5 else made_up_word(rng)
    question = rng.choice([f"Spell {word}.", f"How do you spell {word}?", f"Spell the word {word}."])
    return question, "-".join(word.upper())


def reverse(rng: Random) -> tuple[str, str]:
    word = rng.choice(NOUNS) if rng.random() < 0.4 else made_up_word(rng)
    question = rng.choice([f"Reverse the word {word}.", f"Write {word} backwards.", f"Reverse {word}"])
    return question, f"{'-'.join(word.upper())} reversed is {'-'.join(word[::-1].upper())}."


def upper(rng: Random) -> tuple[str, str]:
    words = " ".join(rng.sample(NOUNS, rng.randint(1, 4)))
    return rng.choice([f"Write in capital letters: {words}", f"Uppercase: {words}"]), words.upper()


def repeat(rng: Random) -> tuple[str, str]:
    words = " ".join(rng.sample(NOUNS, rng.randint(2, 9)))
    if rng.random() < 0.3:
        times = rng.randint(2, 6)
        word = rng.choice(NOUNS)
        return f"Say {word} {times} times.", " ".join([word] * times)
    return rng.choice([f"Repeat after me: {words}", f"Repeat this: {words}", f"Echo: {words}"]), words


def sort_words(rng: Random) -> tuple[str, str]:
    words = rng.sample(NOUNS, rng.randint(3, 6))
    question = rng.choice(
        [f"Sort these words alphabetically: {commas(words)}", f"Put in alphabetical order: {commas(words)}"]
    )
    return question, commas(sorted(words))


def pick(rng: Random, easy: bool) -> tuple[str, str]:
    items = rng.sample(NOUNS + NAMES, rng.randint(3, 5) if easy else rng.randint(4, 12))
    index = rng.randrange(min(len(items), 8))
    ordinal = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"][index]
    kind = rng.random()
    if kind < 0.15:
        return f"Here is a list: {commas(items)}. What is the last item?", f"The last item is {items[-1]}."
    if kind < 0.3:
        return f"Here is a list: {commas(items)}. How many items does it have?", f"The list has {len(items)} items."
    return f"Here is a list: {commas(items)}. What is the {ordinal} item?", f"The {ordinal} item is {items[index]}."


def lookup(rng: Random, easy: bool) -> tuple[str, str]:
    if easy:
        rows = rng.randint(2, 8)
    else:
        rows = rng.randint(4, 60) if rng.random() < 0.3 else rng.randint(3, 12)
    keys = [f"{rng.choice(NOUNS)}-{rng.randint(1, 99)}" for _ in range(rows)]
    codes = [rng.randint(100, 999) for _ in range(rows)]
    table = "\n".join(f"{key}: {code}" for key, code in zip(keys, codes))
    key = keys[rng.randrange(rows)]
    code = dict(zip(keys, codes))[key]  # a key that stands there twice means its last row
    return f"Here is a table.\n{table}\nWhat is the code of {key}?", f"The code of {key} is {code}."


def extract(rng: Random) -> tuple[str, str]:
    name, age, city = rng.choice(NAMES), rng.randint(5, 95), rng.choice(CITIES)
    sentence = rng.choice(
        [
            f"{name} is {age} years old and lives in {city}.",
            f"I met {name} from {city}, aged {age}.",
            f"In {city} lives {name}, who is {age}.",
        ]
    )
    question = rng.choice(
        [f"Extract name, age and city as JSON: {sentence}", f"Return JSON with name, age and city. {sentence}"]
    )
    return question, json.dumps({"name": name, "age": age, "city": city}, ensure_ascii=False)


def sentiment(rng: Random) -> tuple[str, str]:
    good = ["wonderful", "great", "excellent", "lovely", "superb", "delightful"]
    bad = ["terrible", "awful", "boring", "horrible", "dreadful", "poor"]
    answer, words = ("positive", good) if rng.random() < 0.5 else ("negative", bad)
    review = f"The {rng.choice(NOUNS)} was {rng.choice(words)} and the service was {rng.choice(words)}."
    question = rng.choice(
        [f"Classify the sentiment as positive or negative: {review}", f"Is this review positive or negative? {review}"]
    )
    return question, answer


# Skills with numbers.


def arithmetic(rng: Random) -> tuple[str, str]:
    a, b = number(rng), number(rng)
    sign = rng.choice("++-*") if rng.random() < 0.9 else "+"
    match sign:
        case "*":
            a, b = rng.randint(0, 12), rng.randint(0, 12)
            result, verb = a * b, "times"
        case "-":
            a, b = max(a, b), min(a, b)
            result, verb = a - b, "minus"
        case _:
            result, verb = a + b, "plus"
    question = rng.choice(
        [
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b}",
            f"{a}{sign}{b}=?",
            f"Compute {a} {sign} {b}.",
            f"What is {a} {verb} {b}?",
            f"How much is {a} {sign} {b}?",
            f"Calculate {a} {sign} {b}",
        ]
    )
    return question, f"{a} {sign} {b} = {result}."


def sort_numbers(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(0, 100), rng.randint(3, 8))
    listed = commas(numbers)
    if rng.random() < 0.25:
        return f"Sort these numbers in descending order: {listed}", commas(sorted(numbers, reverse=True))
    question = rng.choice([f"Sort these numbers: {listed}", f"Sort: {listed}", f"Put these numbers in order: {listed}"])
    return question, commas(sorted(numbers))


def count_to(rng: Random, easy: bool) -> tuple[str, str]:
    length = rng.randint(3, 30 if easy else 60)
    if rng.random() < 0.3:
        step = rng.choice([2, 5, 10])
        end = min(length, 20) * step
        return f"Count to {end} by {step}s.", commas(range(step, end + 1, step)) + "."
    start = rng.choice([1, 1, 1, rng.randint(2, 40)])
    if start == 1:
        return rng.choice([f"Count to {length}.", f"Count from 1 to {length}."]), commas(range(1, length + 1)) + "."
    end = start + length
    return f"Count from {start} to {end}.", commas(range(start, end + 1)) + "."


def compare(rng: Random) -> tuple[str, str]:
    a, b = number(rng), number(rng)
    if a == b:
        b += 1
    question = rng.choice([f"Which is larger, {a} or {b}?", f"Which number is bigger: {a} or {b}?"])
    return question, f"{max(a, b)} is larger than {min(a, b)}."


def yes_no(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    claim = a + b if rng.random() < 0.5 else a + b + rng.choice([-2, -1, 1, 2])
    question = rng.choice(
        [f"Is {a} + {b} equal to {claim}? Answer yes or no.", f"Is {a} + {b} = {claim}? Answer yes or no."]
    )
    return question, "yes" if claim == a + b else "no"


# The one skill without a right answer.


def story(rng: Random) -> tuple[str, str]:
    animal, friend = rng.sample(ANIMALS, 2)
    hero, other = rng.sample(NAMES, 2)
    place = rng.choice(["forest", "valley", "village", "garden", "harbor", "castle", "meadow", "desert"])
    thing = rng.choice(NOUNS)
    trait = rng.choice(["brave", "curious", "kind", "shy", "clever", "patient"])
    time = rng.choice(["One morning", "One evening", "One winter day", "One day in spring", "Late one night"])
    # Each line is one choice; the numbers are drawn in this order.
    lines = [
        [f"Once upon a time, in a quiet {place}, there lived {article(trait)} {animal} named {hero}."],
        [
            f"{hero} dreamed of finding {article(thing)} that nobody had ever seen.",
            f"Every day {hero} looked for {article(thing)}, but never found one.",
            f"{hero} had lost {article(thing)} and was very sad about it.",
        ],
        [f"{time}, {hero} met {article(friend)} named {other} on the road."],
        [
            f'"Where are you going?" asked {other}.',
            f'"Why do you look so sad?" asked {other}.',
            f'"May I walk with you?" asked {other}.',
        ],
        [
            f'"I am looking for {article(thing)}," said {hero}.',
            f'"I must find {article(thing)} before the sun goes down," said {hero}.',
        ],
        [
            "The two walked together over hills and along the river, and talked about the stars.",
            "They searched behind every stone and under every tree.",
            "They asked the wind, the rain and the old moon, but none of them knew.",
        ],
        [
            f"At last, beside an old bridge, {other} saw the {thing} shining in the grass.",
            f"In the end they found the {thing} right where the walk had begun.",
            f"Then {other} smiled and took the {thing} out of a small bag.",
        ],
        [
            f"{hero} laughed and shared it with everyone in the {place}.",
            f"{hero} was happy, but happier still to have found a friend.",
            f"From that day on {hero} and {other} were never apart.",
        ],
        ["And they lived happily ever after.", "And if you listen closely, you can still hear them laugh.", "The end."],
    ]
    text = " ".join(line[0] if len(line) == 1 else rng.choice(line) for line in lines)
    question = rng.choice(
        [
            f"Tell me a story about {article(animal)}.",
            f"Write a story about {article(animal)}.",
            f"Tell me a short story about {article(animal)}.",
            f"Tell a story about {article(animal)} and {article(friend)}.",
        ]
    )
    return question, text


# Pieces.


def number(rng: Random) -> int:
    size = rng.random()
    if size < 0.25:
        return rng.randint(0, 9)
    return rng.randint(10, 99) if size < 0.65 else rng.randint(100, 999)


def made_up_word(rng: Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def commas(items) -> str:
    return ", ".join(map(str, items))


# Skills that take `easy`.
SCALED = {pick, lookup, count_to}

BASE = Curriculum(
    skills={
        arithmetic: 16,
        capital: 8,
        element: 4,
        spell: 3,
        reverse: 4,
        upper: 1,
        sort_numbers: 5,
        sort_words: 4,
        pick: 5,
        lookup: 7,
        count_to: 3,
        calendar: 2,
        color: 1,
        translate: 4,
        extract: 4,
        compare: 2,
        repeat: 4,
        yes_no: 2,
        sentiment: 2,
        story: 5,
        faq: 7,
        small: 3,
    },
    easy=False,
)
# What 1.4 million parameters can learn in an hour on a CPU.
SMALL = Curriculum(
    skills={
        capital: 14,
        element: 5,
        spell: 2,
        upper: 2,
        pick: 4,
        lookup: 4,
        count_to: 4,
        calendar: 4,
        color: 2,
        translate: 6,
        extract: 6,
        repeat: 6,
        sentiment: 2,
        story: 7,
        faq: 16,
        small: 6,
    },
    easy=True,
)
