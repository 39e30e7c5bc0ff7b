"""Takes nothing, gives the words of mathematics: names of functions, letters, units and the spellings that mean the same."""

from __future__ import annotations

from typing import Final

FUNCTIONS: Final = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arcsinh arccosh arctanh "
    "ln log lg exp cis".split()
)
INVERSE: Final = {name: "arc" + name for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
TRIGONOMETRIC: Final = frozenset("sin cos tan cot sec csc cis".split())  # these read degrees
SAME_FUNCTION: Final = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
}
OF_INTEGERS: Final = frozenset("gcd lcm max min".split())
SPLIT_OFF: Final = ("arcsin", "arccos", "arctan", "sqrt", "sin", "cos", "tan", "exp", "log", "ln")  # sinx, xln

GREEK: Final = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron rho varrho sigma "
    "varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
SAME_LETTER: Final = {"varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "varrho": "rho", "varsigma": "sigma"}

# Commands without a meaning of their own: dropped, with what follows left in place.
SILENT: Final = frozenset(
    "displaystyle textstyle scriptstyle large Large LARGE huge Huge normalsize small limits nolimits left right big Big "
    "bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bf rm it cal nobreak allowbreak mathstrut strut checkmark "
    "therefore".split()
)
SPACES: Final = frozenset("quad qquad enspace thinspace space hfill".split())
FONTS: Final = frozenset(
    "mathbf boldsymbol bm mathit mathcal mathsf mathtt mathnormal boxed fbox underline ensuremath mathop".split()
)
# Part of the name of what they stand over; bold i, j, k are unit vectors too.
ACCENTS: Final = {
    "vec": "vec",
    "overrightarrow": "vec",
    "hat": "hat",
    "widehat": "hat",
    "tilde": "tilde",
    "widetilde": "tilde",
    "dot": "dot",
    "ddot": "ddot",
}
BOLD: Final = frozenset("mathbf boldsymbol bm".split())
# Greek letters that before a bracket are functions more often than factors.
GREEK_FUNCTIONS: Final = frozenset("phi zeta Gamma psi sigma tau mu Phi Psi Lambda".split())
TEXTS: Final = frozenset("text textbf textit textrm textsf texttt textnormal mbox hbox mathrm operatorname emph textup".split())
FRACTIONS: Final = frozenset("frac dfrac tfrac cfrac sfrac".split())
BINOMIALS: Final = frozenset("binom dbinom tbinom".split())
DISPLAYS: Final = frozenset("equation align aligned alignat gather gathered split math displaymath multline center".split())
MATRICES: Final = frozenset("matrix pmatrix bmatrix Bmatrix smallmatrix vmatrix array".split())
OPERATORS: Final = {
    "cdot": "*",
    "times": "*",
    "ast": "*",
    "div": "/",
    "pm": "±",
    "mp": "∓",
    "le": "<=",
    "leq": "<=",
    "leqslant": "<=",
    "ge": ">=",
    "geq": ">=",
    "geqslant": ">=",
    "lt": "<",
    "gt": ">",
    "ne": "!=",
    "neq": "!=",
    "in": "in",
    "cup": "cup",
    "cap": "cap",
    "setminus": "setminus",
    "backslash": "setminus",
    "colon": ":",
    "mid": "|",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "lor": "logical or",
    "vee": "logical or",
    "land": "logical and",
    "wedge": "logical and",
    "lparen": "(",
    "rparen": ")",
    "lbrack": "[",
    "rbrack": "]",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "langle": "(",
    "rangle": ")",
    "degree": "°",
    "bmod": "mod",
    "mod": "mod",
    "equiv": "equiv",
    "approx": "approx",
    "prime": "'",
}

MULTIPLES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
MULTIPLES |= {name + "s": value for name, value in MULTIPLES.items()}
# Written bare after a number ("12 cm", "5 dollars"); shorter or doubtful ones (m, s, g, mg) only inside \text{} and \mathrm{}.
UNITS: Final = frozenset(
    "cm mm km kg ft hr hrs min mins sec secs mph kph lb lbs oz inch inches foot feet yard yards mile miles meter meters metre "
    "metres centimeter centimeters kilometer kilometers millimeter millimeters gram grams kilogram kilograms pound pounds "
    "ounce ounces ton tons liter liters litre litres gallon gallons second seconds minute minutes hour hours day days week "
    "weeks month months year years dollar dollars cent cents euro euros rupees yen unit units square cubic degree degrees "
    "radian radians rad people person students student points point times apples books coins marbles ways people percent usd "
    "eur".split()
)
# Words that change what a number says: an answer that holds one is not "a number and its unit".
NOT_UNITS: Final = frozenset(
    "and or if not no for when where is are was to than more less least most remainder then else otherwise but except without "
    "squared cubed factorial half halves third thirds quarter quarters fourths fifth fifths tenth tenths hundredth hundredths "
    "thousandth thousandths below above negative times am pm mod base about approximately approximate approx roughly around "
    "nearly almost between from until plus minus divided matrix matrices grid inverse reciprocal root roots tens ones bn import "
    "exec eval open positive opposite answer none unknown nan "
    # numbers and multipliers whose value is not known for sure
    "one two three four five six seven eight nine ten couple score gross fold quadrillion quintillion lakh lakhs crore crores "
    "bil mil mill mn mln tn trn basis bp bps mille permille "
    # gains and losses
    "increase increases increased increasing decrease decreases decreased decreasing gain gains gained loss losses lost profit "
    "profits deficit surplus debt owed owe owes off discount discounted markup markdown rise rises rose fall falls fell drop "
    "drops dropped growth reduction reduced raise raised credit debit deposit withdrawal withdrawn "
    # places and directions
    "north south east west northeast northwest southeast southwest northward southward eastward westward northern southern "
    "eastern western up down upward upwards downward downwards right leftward leftwards rightward rightwards forward forwards "
    "backward backwards inward outward inside outside within beyond under over beneath ahead behind clockwise counterclockwise "
    "anticlockwise uphill downhill "
    # times and comparisons
    "before after ago since hence later earlier late early bc ad bce ce fewer greater smaller larger bigger higher lower older "
    "younger longer shorter taller heavier lighter faster slower hotter colder warmer cooler deeper wider narrower cheaper "
    "short extra out inclusive exclusive".split()
)
LETTER_MULTIPLES: Final = frozenset({"k", "K", "M", "B", "T"})  # thousand or kelvin? million or mega-?
COMPASS: Final = frozenset({"n", "s", "e", "w", "ne", "nw", "se", "sw"})  # after degrees; after a number N is newton
LENGTHS: Final = frozenset(  # what "left" after it is a direction of; elsewhere it is what remains: 5 apples left
    "unit units step steps place places space spaces square squares block blocks cm mm m km ft in inch inches foot feet yard "
    "yards mile miles meter meters metre metres kilometer kilometers kilometre kilometres centimeter centimeters".split()
)
CURRENCIES: Final = frozenset("$ € £ ¥ ₹ USD EUR GBP INR JPY CNY Rs US$ CA$ A$".split())
CURRENCY_CODES: Final = frozenset("USD EUR GBP INR JPY CNY Rs".split())  # in this case only: rs is a product
PERCENT: Final = frozenset({"percent", "percents", "per cent", "pct"})
DEGREES: Final = frozenset({"degree", "degrees", "deg"})

# Runs of two or three letters that are words, not products; longer runs are words unless they look like abcd or xyz.
SHORT_WORDS: Final = frozenset(
    "no or if is in at to of on by so it we he ok up us am pm and yes odd dne one two six ten red tea sun mon tue wed thu fri "
    "sat jan feb mar apr may jun jul aug sep oct nov dec the not for all any none can but few her him his how its let man men "
    "new now off old our out own put say see she too top use was way who why win big boy car cat dog day end eye far fly fun "
    "get got had has hat hit hot ice job key kid law leg lie lot low map mat meh met mom dad mud net nor nut oak oil pen pet "
    "pie pig pin pot raw row sad sea set sky son tax tie tip toe toy try van war wet zoo air ant arm art ash ask bad bag bar "
    "bat bay bed bee box bus buy cow cry cup cut die dry due ear eat egg age ago aid aim una non neither pay ray run sit six "
    "won yet you are did inf nil nan".split()
)
NUMBER_WORDS: Final = frozenset({"infinity", "infty"})

UNICODE: Final = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "‐": "-",
        "‑": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "÷": r"\div ",
        "∕": "/",
        "⁄": "/",
        "≤": "<=",
        "⩽": "<=",
        "≥": ">=",
        "⩾": ">=",
        "≠": "!=",
        "±": r"\pm ",
        "∓": r"\mp ",
        "∞": r"\infty ",
        "π": r"\pi ",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3]",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∖": r"\setminus ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "°": r"^\circ ",
        "º": r"^\circ ",
        "′": "'",
        "’": "'",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "≡": r"\equiv ",
        "≈": r"\approx ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "γ": r"\gamma ",
        "δ": r"\delta ",
        "ε": r"\epsilon ",
        "θ": r"\theta ",
        "λ": r"\lambda ",
        "μ": r"\mu ",
        "ρ": r"\rho ",
        "σ": r"\sigma ",
        "τ": r"\tau ",
        "φ": r"\phi ",
        "ω": r"\omega ",
        "Δ": r"\Delta ",
        "Ω": r"\Omega ",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}",
        "⅖": r"\frac{2}{5}",
        "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}",
        "⅙": r"\frac{1}{6}",
        "⅚": r"\frac{5}{6}",
        "⅛": r"\frac{1}{8}",
        "⅜": r"\frac{3}{8}",
        "⅝": r"\frac{5}{8}",
        "⅞": r"\frac{7}{8}",
        "“": '"',
        "”": '"',
    }
)
RAISED: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
LOWERED: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# What is said of a variable beside an answer: where k \in \mathbb{Z}, for any integer k, k is an integer.
WHERE: Final = frozenset({"where", "with", "for", "for all", "for any", "for every", "for some"})
ANY_INTEGER: Final = frozenset(
    f"{start} {n}" for start in ("for", "for any", "for all", "for some", "where", "any") for n in ("integer", "integers")
)
IS_INTEGER: Final = frozenset({"is an integer", "is any integer", "an integer", "any integer", "integer", "are integers"})
