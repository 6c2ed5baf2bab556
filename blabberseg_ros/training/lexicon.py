# SPDX-License-Identifier: Apache-2.0
"""The words of the procedural world: which phrase stands for which class.

Everything that the demonstration model will ever know about language is in this file. Words of the
training phrases become its vocabulary; the held-out phrases are never shown to it, though each of
their words is (a word that was never seen has no meaning to a model that starts from nothing).
"""

from dataclasses import dataclass

from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE, DEFAULT_TEMPLATE
from blabberseg_ros.text import words_of

PLACEHOLDER = '{}'
CARLA_TEMPLATE = "a bird's eye view of a {}, ingame screen shot, bad graphics, shade, shadows"

TRAINING_TEMPLATES = (
    PLACEHOLDER,
    DEFAULT_TEMPLATE,
    CARLA_TEMPLATE,
    'a photo of {}',
    'an aerial photo of {}',
    'aerial view of {}',
    'aerial image of {}, low resolution',
    'a satellite image of {}',
    'top view of {}',
    "a bird's eye view of {}",
    'drone footage of {}',
    'drone photo of {} seen from above',
    'a picture of the {}',
    'there is {} in this image',
    'this is {}, seen from the air',
    'overhead view of {}, shadows',
)


@dataclass(frozen=True)
class Terms:
    """How people name one class.

    Attributes:
        canonical: the plainest name; the one that tests use first.
        nouns: names that may stand alone or in lists.
        adjectives: words that may be put before a noun without changing its class.
        held_out: phrases that training never shows, made of words that it does show.
    """

    canonical: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    held_out: tuple[str, str, str]


TERMS: dict[str, Terms] = {
    'building': Terms(
        'building',
        ('building', 'buildings', 'house', 'houses', 'apartment-building', 'apartment block',
         'apartments', 'warehouse', 'warehouses', 'shed', 'sheds', 'garage', 'garages', 'barn',
         'factory', 'office building', 'hall', 'hut', 'cabin', 'home', 'homes', 'villa',
         'housing', 'skyscraper', 'tower block', 'roof', 'roofs', 'rooftop', 'rooftops',
         'flat roof', 'tiled roof', 'metal roof', 'terrace', 'shelter', 'dome', 'canopy',
         'ceiling', 'roof of a house', 'roof of a building', 'houses with roofs', 'town houses',
         'industrial building', 'block of apartments', 'greenhouse', 'church', 'school building',
         'chimney on a roof', 'solar panels on a roof', 'architecture'),
        ('large', 'small', 'residential', 'industrial', 'old', 'new', 'modern', 'red', 'grey',
         'tall', 'low', 'suburban', 'urban', 'commercial', 'big'),
        ('rooftops of residential houses', 'the roof of an industrial hall',
         'apartment homes in a tall tower')),
    'tree': Terms(
        'tree',
        ('tree', 'trees', 'bare tree', 'bare trees', 'tree during autumn', 'autumn trees', 'bush',
         'bushes', 'tall-plant', 'tall plants', 'forest', 'woods', 'woodland', 'grove', 'orchard',
         'shrub', 'shrubs', 'foliage', 'tree crown', 'tree crowns', 'tree tops', 'leaves',
         'leafy branches', 'branches', 'conifer', 'conifers', 'pine', 'pine trees', 'oak',
         'birch', 'palm tree', 'fruit trees', 'tree in winter', 'trees with leaves',
         'wooded area', 'thicket', 'row of trees', 'group of trees', 'tall vegetation',
         'dense vegetation'),
        ('tall', 'large', 'small', 'green', 'old', 'young', 'dense', 'leafy', 'dark', 'single',
         'big', 'wild'),
        ('leafy woods', 'a thicket of wild shrubs', 'crowns of old oak trees')),
    'water': Terms(
        'water',
        ('water', 'lake', 'lakes', 'river', 'rivers', 'swimming pool', 'swimming pools', 'pool',
         'pond', 'ponds', 'stream', 'canal', 'sea', 'ocean', 'reservoir', 'brook', 'creek',
         'water surface', 'open water', 'waterway', 'body of water', 'basin', 'harbour', 'lagoon',
         'water of a river', 'water of a lake', 'flooded ground', 'wet surface of a pond',
         'garden pool', 'flowing water', 'standing water'),
        ('deep', 'blue', 'dark', 'calm', 'shallow', 'murky', 'clear', 'wide', 'still', 'cold'),
        ('a calm body of blue water', 'surface of a wide river', 'deep garden pond')),
    'vehicle': Terms(
        'vehicle',
        ('vehicle', 'vehicles', 'car', 'cars', 'train', 'trains', 'truck', 'trucks', 'van',
         'vans', 'bus', 'buses', 'lorry', 'lorries', 'automobile', 'automobiles', 'parked car',
         'parked cars', 'parked vehicles', 'motor vehicle', 'pickup truck', 'taxi', 'traffic',
         'moving cars', 'delivery van', 'trailer', 'boat', 'boats', 'barge', 'moored boat', 'ship',
         'row of cars', 'cars and trucks'),
        ('red', 'white', 'black', 'blue', 'parked', 'moving', 'large', 'small', 'old', 'new',
         'heavy', 'grey'),
        ('automobiles in traffic', 'a row of parked vans', 'heavy motor trucks')),
    'road': Terms(
        'road',
        ('road', 'roads', 'street', 'streets', 'avenue', 'highway', 'drive', 'lane', 'lanes',
         'motorway', 'freeway', 'roadway', 'main road', 'side street', 'country road',
         'carriageway', 'crossroads', 'intersection', 'road junction', 'road with markings',
         'lane markings', 'traffic lane', 'boulevard', 'asphalt road', 'paved road',
         'tarmac road', 'road surface', 'street with traffic lanes', 'bus lane', 'expressway',
         'roundabout', 'thoroughfare', 'cobbled street', 'railway', 'railway tracks', 'rails',
         'railway line'),
        ('wide', 'narrow', 'long', 'straight', 'busy', 'empty', 'urban', 'rural', 'dark',
         'main'),
        ('a busy highway with lane markings', 'narrow rural roadway',
         'intersection of narrow streets')),
    'grass': Terms(
        'grass',
        ('grass', 'dead grass', 'dry grass', 'backyard', 'frontyard', 'courtyard', 'lawn',
         'lawns', 'meadow', 'meadows', 'turf', 'mown grass', 'green grass', 'grassland',
         'grassy area', 'short grass', 'garden lawn', 'grass verge', 'yard', 'green lawn',
         'pasture', 'grassy ground', 'grass strip', 'village green', 'tall grass',
         'grass in a garden', 'low vegetation', 'sports-field', 'sports field', 'football pitch',
         'soccer field', 'playing field', 'sports pitch', 'grass of a park', 'turf of a lawn',
         'lawn of a house'),
        ('green', 'dry', 'dead', 'fresh', 'mown', 'flat', 'soft', 'open', 'yellow', 'grassy',
         'short'),
        ('fresh mown green turf', 'a meadow of short dry grass', 'the lawn in a backyard')),
    'soil': Terms(
        'soil',
        ('soil', 'bare soil', 'dirt', 'sand', 'earth', 'bare earth', 'bare ground', 'mud',
         'gravel', 'gravel ground', 'sandy ground', 'clay', 'dust', 'dry soil', 'dirt ground',
         'dirt path', 'dirt track', 'loose earth', 'muddy ground', 'beach', 'desert',
         'brown earth', 'unpaved ground', 'trodden earth', 'rubble', 'stony ground', 'sand pit',
         'gravel path', 'dirt of a path', 'dry ground'),
        ('dry', 'brown', 'bare', 'sandy', 'loose', 'wet', 'stony', 'red', 'dusty', 'flat',
         'unpaved'),
        ('dusty brown dirt', 'a track of bare loose earth', 'unpaved sandy soil')),
    'paved': Terms(
        'paved ground',
        ('paved ground', 'parking lot', 'parking lots', 'car park', 'sidewalk', 'sidewalks',
         'concrete floor', 'concrete', 'asphalt', 'pavement', 'paving stones', 'plaza', 'square',
         'paved area', 'paved yard', 'pavers', 'driveway', 'footpath', 'walkway', 'footway',
         'parking area', 'parking space', 'concrete slab', 'tarmac', 'paved square',
         'tennis court', 'sports court', 'pier', 'jetty', 'quay', 'patio', 'concrete ground',
         'asphalt ground', 'market square',
         'paved path', 'tiled ground', 'floor of concrete'),
        ('grey', 'flat', 'empty', 'concrete', 'large', 'open', 'light', 'hard', 'smooth',
         'paved', 'stone'),
        ('an empty car park of grey concrete', 'paving of a market plaza',
         'hard asphalt walkway')),
    'structure': Terms(
        'fence',
        ('fence', 'fences', 'wall', 'walls', 'hedgerow', 'lamp-post', 'lamp-posts',
         'transmission-line', 'power line', 'power lines', 'pole', 'poles', 'street lamp',
         'stairs', 'steps', 'footsteps', 'staircase', 'garden fence', 'garden wall', 'stone wall',
         'wooden fence', 'railing', 'barrier', 'pylon', 'mast', 'post', 'bench', 'gate', 'sign',
         'utility pole', 'electric wires', 'wires', 'cable', 'hedge', 'picket fence',
         'brick wall', 'container', 'wire fence', 'boundary wall', 'lamp', 'structure',
         'structures', 'obstacle', 'obstacles', 'equipment'),
        ('high', 'low', 'long', 'thin', 'wooden', 'metal', 'stone', 'small', 'old', 'concrete',
         'tall'),
        ('a long wooden barrier', 'metal railing of a staircase', 'boundary fence with posts')),
    'person': Terms(
        'people',
        ('people', 'crowd', 'person', 'persons', 'pedestrian', 'pedestrians', 'man', 'woman',
         'men', 'women', 'child', 'children', 'human', 'humans', 'walker', 'walkers', 'worker',
         'workers', 'group of people', 'crowd of people', 'walking people', 'standing person',
         'person walking', 'bystanders', 'visitors', 'humans walking', 'people standing',
         'players', 'spectators', 'somebody'),
        ('walking', 'standing', 'many', 'few', 'several', 'young', 'old', 'small', 'sitting'),
        ('a group of walking humans', 'several pedestrians standing',
         'crowd of young visitors')),
    'field': Terms(
        'agricultural field',
        ('agricultural field', 'agricultural land', 'farmland', 'crop field', 'crops',
         'ploughed field', 'farm field', 'farm land', 'cropland', 'wheat field', 'corn field',
         'arable land', 'harvested field', 'fields', 'field', 'cultivated land',
         'open field', 'plantation rows', 'crop rows', 'field with furrows', 'stubble field',
         'ploughed land', 'farmed land', 'rows of a crop', 'land with crops'),
        ('large', 'wide', 'green', 'yellow', 'brown', 'open', 'flat', 'ploughed', 'cultivated',
         'agricultural', 'harvested'),
        ('wide rows of yellow wheat', 'cultivated cropland with furrows',
         'harvested wheat on farmland')),
}

# Names of no single class. DOVESEI's safe prompts use some of them.
SHARED_NOUNS: dict[str, tuple[str, ...]] = {
    'park': ('grass',),
    'open-area': ('grass', 'field'),
    'open-space': ('grass', 'field'),
    'open space': ('grass', 'field'),
    'open ground': ('grass', 'soil', 'field'),
    'flat ground': ('grass', 'soil', 'paved', 'field'),
    'safe place to land': ('grass', 'soil', 'paved', 'field'),
    'landing site': ('grass', 'soil', 'paved', 'field'),
    'vegetation': ('tree', 'grass'),
    'plants': ('tree', 'grass'),
    'tarmac surface': ('road', 'paved'),
    'hard surface': ('road', 'paved'),
    'asphalt surface': ('road', 'paved'),
    'land': ('grass', 'soil', 'field'),
    'man-made objects': ('building', 'vehicle', 'structure'),
    'objects': ('vehicle', 'structure', 'person'),
    'unsafe place to land': ('building', 'tree', 'water', 'vehicle', 'road', 'structure',
                             'person'),
    'danger': ('building', 'tree', 'water', 'vehicle', 'road', 'structure', 'person'),
}

_DEFAULT_CLASSES: tuple[tuple[str, ...], ...] = (
    ('building',), ('building',), ('tree',), ('water',), ('person',), ('vehicle',),
    ('structure',), ('structure',), ('road',), ('structure',),
    ('grass',), ('grass', 'field'), ('paved', 'soil'),
)
# DOVESEI's thirteen prompts, negatives first, and the classes that each of them stands for.
DEFAULT_COVERAGE: dict[str, tuple[str, ...]] = dict(
    zip(DEFAULT_NEGATIVE + DEFAULT_POSITIVE, _DEFAULT_CLASSES, strict=True))

# Put around phrases in training, so that they are known to mean nothing.
LINKING_WORDS = ('a', 'an', 'the', 'of', 'and', 'in', 'with', 'on', 'some', 'or', 'from above')


_HELD_OUT = frozenset(phrase for terms in TERMS.values() for phrase in terms.held_out)


def is_held_out(phrase: str) -> bool:
    """Return whether a phrase holds, anywhere in it, one that is kept for the test."""
    return any(held_out in phrase for held_out in _HELD_OUT)


def training_texts() -> tuple[str, ...]:
    """Return texts that together hold every word and mark that training can show."""
    texts = [*TRAINING_TEMPLATES, *DEFAULT_COVERAGE, *SHARED_NOUNS, *LINKING_WORDS]
    for terms in TERMS.values():
        texts += [terms.canonical, *terms.nouns, *terms.adjectives]
    return tuple(texts)


def training_vocabulary() -> tuple[str, ...]:
    """Return every word that training can show, sorted."""
    return tuple(sorted({word for text in training_texts() for word in words_of(text.lower())}))
