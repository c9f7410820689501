"""The published collections that are known by name: where their files are, and what the files must be.

Sizes and SHA-256 checksums are those that TFDS registers for the zips of BEIR (arXiv 2104.08663). NanoBEIR is a set of
small samples of BEIR collections, with 50 queries each, on the Hugging Face hub.
"""

import os
from typing import NamedTuple

URL_VARIABLE = "PRORANK_BEIR_URL"
URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"


class Zip(NamedTuple):
    """A file of BEIR."""

    name: str
    size: int
    """Bytes."""
    sha256: str

    @property
    def url(self) -> str:
        """Where it is; `$PRORANK_BEIR_URL` names a mirror, a folder with files of the same names."""
        return f"{os.environ.get(URL_VARIABLE, URL).rstrip('/')}/{self.name}.zip"


ZIPS = {
    zipped.name: zipped
    for zipped in (
        Zip("arguana", 3773617, "cfdf79adce27a401b3cd3ea267903134dbfab2c6afeb95d7fe5724a00bf7557b"),
        Zip("climate-fever", 1228666652, "9d6cf03121238bba187f9d4b5bdfdc42b2b171f19b6d86a557f95c51687691f3"),
        Zip("cqadupstack", 5343728040, "6072f7d345496387d24194c8af35c5fb6c2f0e5f9130c5b4a78b98bbfac88558"),
        Zip("dbpedia-entity", 639285131, "e4c13080b5399a19e02b04c908c485f8997ac9e265a06ef5f9f28c3f1134c472"),
        Zip("fever", 1236988269, "58b3faee0c152158b27970380f778ea56e4e34482034404226c10e11eadc7b72"),
        Zip("fiqa", 17948027, "32c7df99ed21252fdfb2cf3f5673502a8d245ee0c44c4a133570d92ce2b3ad02"),
        Zip("hotpotqa", 654025350, "c62459dbc91d31329584507b1fa564b3b1abcee58800967113054ee0f5a15c62"),
        Zip("msmarco", 1082258632, "f46aed8343564261c27228b7cf22dde5c9a70143fe34dc3c589bd5322308712a"),
        Zip("nfcorpus", 2448432, "efe5be03f8c5b86a5870102d0599d227c8c6e2484328e68c6522560385671b0b"),
        Zip("nq", 498307926, "2553bf7bfbab47b1436ca00a34bce57320e18e611fd00999a2a3a1b4714be752"),
        Zip("quora", 15853968, "56aacd9dcc4d9c093b63f175afdda0e21cbc8442ecf6c717d09de7b358d77531"),
        Zip("scidocs", 142471588, "96640201687767c9b1fcc5af7a80b90fb325b37fa25329c2586c25edcfa17ef1"),
        Zip("scifact", 2816079, "536e14446a0ba56ed1398ab1055f39fe852686ecad24a6306c80c490fa8e0165"),
        Zip("trec-covid", 73876720, "120f42a7864d2214234537733c0d2c6684e42fdfafff2c5eacf98afca6656aa0"),
        Zip("webis-touche2020", 227132363, "1a706ed9c03ecc75cf012495bd8e37b761f7b0350a939910d0f54862e26fc601"),
    )
}

FORUMS = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)
"""Of CQADupStack, whose zip holds a collection of each."""


def zip_of(folder: str) -> Zip:
    """`cqadupstack/tex` -> the zip that the folder is in, which has the name of its first part."""
    return ZIPS[folder.partition("/")[0]]


BEIR = {
    f"beir/{name}": name
    for name in (
        *("msmarco", "trec-covid", "nfcorpus", "nq", "hotpotqa", "fiqa", "arguana", "webis-touche2020"),
        *(f"cqadupstack/{forum}" for forum in FORUMS),
        *("quora", "dbpedia-entity", "scidocs", "fever", "climate-fever", "scifact"),
    )
}
"""Name -> the folder in its zip; in the order of the BEIR paper."""

NANO_BEIR = {
    "nano-beir/arguana": "zeta-alpha-ai/NanoArguAna",
    "nano-beir/climate-fever": "zeta-alpha-ai/NanoClimateFEVER",
    "nano-beir/dbpedia-entity": "zeta-alpha-ai/NanoDBPedia",
    "nano-beir/fever": "zeta-alpha-ai/NanoFEVER",
    "nano-beir/fiqa": "zeta-alpha-ai/NanoFiQA2018",
    "nano-beir/hotpotqa": "zeta-alpha-ai/NanoHotpotQA",
    "nano-beir/msmarco": "zeta-alpha-ai/NanoMSMARCO",
    "nano-beir/nfcorpus": "zeta-alpha-ai/NanoNFCorpus",
    "nano-beir/nq": "zeta-alpha-ai/NanoNQ",
    "nano-beir/quora": "zeta-alpha-ai/NanoQuoraRetrieval",
    "nano-beir/scidocs": "zeta-alpha-ai/NanoSCIDOCS",
    "nano-beir/scifact": "zeta-alpha-ai/NanoSciFact",
    "nano-beir/webis-touche2020": "zeta-alpha-ai/NanoTouche2020",
}
"""Name -> the repository on the hub."""

COLLECTIONS = (*BEIR, *NANO_BEIR)
"""Every name."""
