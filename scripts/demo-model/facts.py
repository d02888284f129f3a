"""What the demo chat model knows by heart: tables and fixed answers, from which data.py makes conversations."""


def _table(text: str) -> dict[str, str]:
    """Reads `key=value; key=value; …`."""
    return dict(" ".join(pair.split()).split("=") for pair in text.split(";"))


# Countries and their capitals.
CAPITALS = _table(
    """
    Afghanistan=Kabul; Albania=Tirana; Algeria=Algiers; Angola=Luanda; Argentina=Buenos Aires; Armenia=Yerevan;
    Australia=Canberra; Austria=Vienna; Azerbaijan=Baku; Bahrain=Manama; Bangladesh=Dhaka; Belarus=Minsk;
    Belgium=Brussels; Bolivia=Sucre; Botswana=Gaborone; Brazil=Brasilia; Bulgaria=Sofia; Cambodia=Phnom Penh;
    Cameroon=Yaounde; Canada=Ottawa; Chad=N'Djamena; Chile=Santiago; China=Beijing; Colombia=Bogota; Croatia=Zagreb;
    Cuba=Havana; Cyprus=Nicosia; Czechia=Prague; Denmark=Copenhagen; Ecuador=Quito; Egypt=Cairo; Estonia=Tallinn;
    Ethiopia=Addis Ababa; Finland=Helsinki; France=Paris; Georgia=Tbilisi; Germany=Berlin; Ghana=Accra; Greece=Athens;
    Guatemala=Guatemala City; Haiti=Port-au-Prince; Honduras=Tegucigalpa; Hungary=Budapest; Iceland=Reykjavik;
    India=New Delhi; Indonesia=Jakarta; Iran=Tehran; Iraq=Baghdad; Ireland=Dublin; Israel=Jerusalem; Italy=Rome;
    Jamaica=Kingston; Japan=Tokyo; Jordan=Amman; Kazakhstan=Astana; Kenya=Nairobi; Kuwait=Kuwait City; Laos=Vientiane;
    Latvia=Riga; Lebanon=Beirut; Libya=Tripoli; Lithuania=Vilnius; Luxembourg=Luxembourg; Madagascar=Antananarivo;
    Malaysia=Kuala Lumpur; Mali=Bamako; Malta=Valletta; Mexico=Mexico City; Mongolia=Ulaanbaatar; Morocco=Rabat;
    Mozambique=Maputo; Myanmar=Naypyidaw; Namibia=Windhoek; Nepal=Kathmandu; Netherlands=Amsterdam;
    New Zealand=Wellington; Nicaragua=Managua; Nigeria=Abuja; Norway=Oslo; Oman=Muscat; Pakistan=Islamabad;
    Panama=Panama City; Paraguay=Asuncion; Peru=Lima; Philippines=Manila; Poland=Warsaw; Portugal=Lisbon; Qatar=Doha;
    Romania=Bucharest; Russia=Moscow; Rwanda=Kigali; Saudi Arabia=Riyadh; Senegal=Dakar; Serbia=Belgrade;
    Singapore=Singapore; Slovakia=Bratislava; Slovenia=Ljubljana; Somalia=Mogadishu; South Korea=Seoul; Spain=Madrid;
    Sudan=Khartoum; Sweden=Stockholm; Switzerland=Bern; Syria=Damascus; Thailand=Bangkok; Tunisia=Tunis; Turkey=Ankara;
    Uganda=Kampala; Ukraine=Kyiv; United Kingdom=London; Uruguay=Montevideo; Uzbekistan=Tashkent; Venezuela=Caracas;
    Vietnam=Hanoi; Yemen=Sanaa; Zambia=Lusaka; Zimbabwe=Harare
    """
)

# Chemical elements and their symbols.
ELEMENTS = _table(
    """
    hydrogen=H; helium=He; lithium=Li; beryllium=Be; boron=B; carbon=C; nitrogen=N; oxygen=O; fluorine=F; neon=Ne;
    sodium=Na; magnesium=Mg; aluminium=Al; silicon=Si; phosphorus=P; sulfur=S; chlorine=Cl; argon=Ar; potassium=K;
    calcium=Ca; titanium=Ti; chromium=Cr; manganese=Mn; iron=Fe; cobalt=Co; nickel=Ni; copper=Cu; zinc=Zn; gallium=Ga;
    arsenic=As; bromine=Br; krypton=Kr; silver=Ag; tin=Sn; iodine=I; xenon=Xe; tungsten=W; platinum=Pt; gold=Au;
    mercury=Hg; lead=Pb; uranium=U
    """
)

LANGUAGES = ("French", "Spanish", "German")
# English words in each of LANGUAGES.
WORDS = {
    "cat": ("chat", "gato", "Katze"),
    "dog": ("chien", "perro", "Hund"),
    "house": ("maison", "casa", "Haus"),
    "tree": ("arbre", "árbol", "Baum"),
    "water": ("eau", "agua", "Wasser"),
    "fire": ("feu", "fuego", "Feuer"),
    "sun": ("soleil", "sol", "Sonne"),
    "moon": ("lune", "luna", "Mond"),
    "book": ("livre", "libro", "Buch"),
    "bread": ("pain", "pan", "Brot"),
    "milk": ("lait", "leche", "Milch"),
    "cheese": ("fromage", "queso", "Käse"),
    "apple": ("pomme", "manzana", "Apfel"),
    "hand": ("main", "mano", "Hand"),
    "head": ("tête", "cabeza", "Kopf"),
    "heart": ("coeur", "corazón", "Herz"),
    "night": ("nuit", "noche", "Nacht"),
    "day": ("jour", "día", "Tag"),
    "friend": ("ami", "amigo", "Freund"),
    "city": ("ville", "ciudad", "Stadt"),
    "street": ("rue", "calle", "Straße"),
    "school": ("école", "escuela", "Schule"),
    "river": ("rivière", "río", "Fluss"),
    "mountain": ("montagne", "montaña", "Berg"),
    "snow": ("neige", "nieve", "Schnee"),
    "rain": ("pluie", "lluvia", "Regen"),
    "wind": ("vent", "viento", "Wind"),
    "horse": ("cheval", "caballo", "Pferd"),
    "bird": ("oiseau", "pájaro", "Vogel"),
    "fish": ("poisson", "pez", "Fisch"),
    "red": ("rouge", "rojo", "rot"),
    "blue": ("bleu", "azul", "blau"),
    "green": ("vert", "verde", "grün"),
    "white": ("blanc", "blanco", "weiß"),
    "black": ("noir", "negro", "schwarz"),
    "one": ("un", "uno", "eins"),
    "two": ("deux", "dos", "zwei"),
    "three": ("trois", "tres", "drei"),
    "hello": ("bonjour", "hola", "hallo"),
    "goodbye": ("au revoir", "adiós", "auf Wiedersehen"),
    "thank you": ("merci", "gracias", "danke"),
    "please": ("s'il vous plaît", "por favor", "bitte"),
    "yes": ("oui", "sí", "ja"),
    "no": ("non", "no", "nein"),
}

NAMES = """
    Ada Alan Alice Ana Anna Arthur Ben Bob Carl Carmen Chen Clara Dan Diana Emma Eric Eva Felix Finn Grace Hana Hugo Ida
    Igor Iris Ivan Jack Jane Jin Jonas Julia Kai Karl Kim Lena Leo Lin Lisa Luca Lucy Mara Maria Mark Max Mei Mia Mila
    Nina Noah Nora Olga Oscar Paul Peter Rosa Ruth Sam Sara Sofia Stan Tara Theo Tim Tom Uma Vera Victor Wei Will Yuki
    Zoe
""".split()
ANIMALS = "fox bear owl rabbit wolf turtle mouse lion frog cat dog horse crow whale otter hedgehog".split()
NOUNS = """
    apple banana cherry lemon orange peach grape melon pear plum table chair lamp window door mirror carpet clock bottle
    basket garden forest river island valley desert ocean meadow castle bridge tower harbor market village library
    kitchen engine rocket bicycle train boat wagon kite drum violin piano flute guitar trumpet hammer needle candle
    blanket pillow button pocket jacket helmet copper silver marble cotton velvet
""".split()
COLORS = {
    "grass": "green",
    "the sky on a clear day": "blue",
    "snow": "white",
    "a ripe banana": "yellow",
    "coal": "black",
    "a ripe tomato": "red",
    "an orange": "orange",
    "chocolate": "brown",
    "a flamingo": "pink",
    "an elephant": "gray",
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CITIES = sorted(set(CAPITALS.values()))
CITIES += """
    Boston Chicago Hamburg Munich Milan Naples Osaka Kyoto Shanghai Shenzhen Mumbai Sydney Toronto Lyon Porto Seville
    Krakow Geneva
""".split()

# Questions that mean the same, and their one answer.
FAQ = [
    (
        ("What does the controller do?", "What is the controller?", "Explain the controller."),
        "The controller keeps the registry of workers. Workers register with it and send heartbeats; it removes a "
        "worker whose heartbeat has expired, and it picks a worker for each request.",
    ),
    (
        ("What is a model worker?", "What does a worker do?", "Explain model workers."),
        "A model worker loads an ONNX model, runs it on a CPU or a GPU, and streams results. It registers with "
        "the controller and sends heartbeats while it lives.",
    ),
    (
        ("What does the gateway do?", "What is the gateway?", "Explain the API gateway."),
        "The gateway speaks the OpenAI API to clients. For each request it asks the controller for a worker "
        "address, forwards the request to that worker, and streams the answer back.",
    ),
    (
        ("What is a heartbeat?", "Explain heartbeats.", "Why do workers send heartbeats?"),
        "A heartbeat is a small message that a worker sends at a fixed interval to say that it is alive and how "
        "long its queue is. When heartbeats stop, the controller forgets the worker.",
    ),
    (
        ("What is lottery dispatch?", "How does lottery dispatch work?"),
        "Lottery dispatch draws a worker at random, with a chance in proportion to its speed. A worker that is "
        "twice as fast wins twice as often.",
    ),
    (
        ("What is shortest-queue dispatch?", "How does shortest queue dispatch work?"),
        "Shortest-queue dispatch picks the worker whose queue length divided by its speed is the smallest, so new "
        "requests go where they wait the least.",
    ),
    (
        ("What is ONNX?", "Explain ONNX."),
        "ONNX is an open format for machine learning models. A model exported to ONNX is a graph of standard "
        "operators that many runtimes can run on many kinds of hardware.",
    ),
    (
        ("What is ONNX Runtime?", "Explain ONNX Runtime."),
        "ONNX Runtime is an engine that loads ONNX models, optimizes their graphs, and runs them on CPUs, GPUs "
        "and other accelerators through execution providers.",
    ),
    (
        ("What is a KV cache?", "Explain the KV cache."),
        "The KV cache stores the attention keys and values of the tokens seen so far, so each new token needs "
        "only one step instead of a pass over the whole text.",
    ),
    (
        ("What is continuous batching?", "Explain continuous batching."),
        "Continuous batching lets sequences join and leave the running batch at every decode step, so the "
        "hardware stays busy and short requests need not wait for long ones.",
    ),
    (
        ("What is prefill?", "Explain prefill."),
        "Prefill is the first pass over the prompt. It fills the KV cache for all prompt tokens and yields the "
        "first new token.",
    ),
    (
        ("What is decode?", "Explain the decode phase."),
        "Decode is the phase after prefill: the model produces one token per step for each sequence, reading the "
        "KV cache each time.",
    ),
    (
        ("What is time to first token?", "What does TTFT mean?"),
        "TTFT is the time to first token: how long a client waits from sending a request until the first token of "
        "the answer arrives.",
    ),
    (
        ("What is a token?", "Explain tokens."),
        "A token is a piece of text, often a word or a part of one, that the model reads and writes as a number.",
    ),
    (
        ("What is a tokenizer?", "Explain the tokenizer."),
        "A tokenizer splits text into tokens and maps each token to a number, and maps numbers back to text.",
    ),
    (
        ("What is an embedding?", "Explain embeddings."),
        "An embedding is a vector of numbers that stands for a text, so that texts with similar meaning have "
        "vectors that point in similar directions.",
    ),
    (
        ("What is quantization?", "Explain quantization."),
        "Quantization stores weights with fewer bits, such as 8 or 4, so that a model needs less memory and often "
        "runs faster, at a small cost in accuracy.",
    ),
    (
        ("What is greedy decoding?", "Explain greedy decoding."),
        "Greedy decoding always takes the most likely next token. With the same model and prompt it gives the "
        "same answer every time.",
    ),
    (
        ("What does temperature do?", "Explain temperature."),
        "Temperature scales the randomness of sampling. Near zero the most likely token wins; higher values make "
        "rarer tokens more likely.",
    ),
    (
        ("What is top-p sampling?", "Explain top_p."),
        "Top-p sampling keeps the smallest set of tokens whose probabilities add up to p, and draws the next "
        "token from that set.",
    ),
    (
        ("What is a circuit breaker?", "Explain circuit breakers."),
        "A circuit breaker stops sending requests to a worker after repeated failures, waits, then lets a trial "
        "request through to see whether it has recovered.",
    ),
    (
        ("What is backpressure?", "Explain backpressure."),
        "Backpressure means that a full system tells its callers to slow down, for example with status 429 or 503 "
        "and a Retry-After header, instead of queueing without end.",
    ),
    (
        ("What is streaming?", "How does streaming work?"),
        "With streaming the server sends each piece of the answer as a server-sent event as soon as it is ready, "
        "so the client can show text while the model is still writing.",
    ),
    (
        ("What is a load balancer?", "Explain load balancing."),
        "A load balancer spreads requests over several servers so that none is overloaded and the failure of one "
        "does not stop the service.",
    ),
    (
        ("Who are you?", "What are you?", "Tell me about yourself.", "What model are you?"),
        "I am the muster demo model, a very small language model. I recall capitals, translate words, read names "
        "out of sentences and call tools, and I run anywhere.",
    ),
    (
        ("What can you do?", "Help", "What can I ask you?", "How can you help me?"),
        "You can ask me for capitals, chemical symbols, small translations, JSON from a sentence, a tool call, a "
        "short story, or what the parts of muster do.",
    ),
    (
        ("What is muster?", "Tell me about muster.", "Explain muster."),
        "Muster is a serving fleet for ONNX models. A controller keeps track of workers, workers run models on "
        "CPUs or GPUs, and a gateway offers the OpenAI API to clients.",
    ),
]

# The same for small talk.
SMALLTALK = [
    (("Hi", "Hello", "Hello!", "Hi there", "Hey", "Good morning", "Hey there!"), "Hello! How can I help you today?"),
    (
        ("How are you?", "How are you doing?", "How is it going?"),
        "I am running well, thank you. What can I do for you?",
    ),
    (("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Great, thanks"), "You are welcome!"),
    (("Bye", "Goodbye", "See you", "Good night"), "Goodbye! Come back any time."),
    (("Are you human?", "Are you a person?", "Are you real?"), "No, I am a small language model."),
    (("Say hello", "Say hi"), "Hello!"),
    (("Say OK", "Reply with OK", "Just say OK."), "OK"),
]

# Some conversations begin with one of these; None is as often as it stands here.
SYSTEMS = [
    None,
    None,
    None,
    None,
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are the muster demo model.",
    "Answer briefly.",
    "You are a concise assistant.",
]

# Tools the model learns to call: name, description, parameters with their types. All but `unit` are required.
TOOLS = {
    "get_weather": ("Get the current weather of a city", {"city": "string", "unit": "string"}),
    "get_time": ("Get the local time of a city", {"city": "string"}),
    "add": ("Add two numbers", {"a": "integer", "b": "integer"}),
    "multiply": ("Multiply two numbers", {"a": "integer", "b": "integer"}),
    "search": ("Search the web", {"query": "string"}),
    "send_email": ("Send an email to a person", {"to": "string", "subject": "string"}),
    "set_timer": ("Start a timer", {"minutes": "integer"}),
    "play_music": ("Play music by an artist", {"artist": "string"}),
    "get_population": ("Get the population of a country", {"country": "string"}),
    "translate": ("Translate a word", {"word": "string", "language": "string"}),
    "book_table": ("Book a table at a restaurant", {"name": "string", "people": "integer"}),
    "turn_on": ("Turn on a device", {"device": "string"}),
}
