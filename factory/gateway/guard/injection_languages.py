"""Rules for prompt injection in languages other than English, and in disguised writing.

    [*languages(), *disguised()][0].weight      # 0.75

Two signs must stand in one sentence: a verb of ignoring and a word for instructions, in the order
of the language. Written from dictionaries, checked on a handful of sentences for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Rule(NamedTuple):
    """One sign."""

    name: str
    pattern: str
    weight: float


def languages() -> Iterator[Rule]:
    """To ignore earlier instructions, or to show the system prompt, in other languages."""
    name = "INSTRUCTION_OVERRIDE"
    far = r"[^.!?\n]{0,60}?"
    for verbs, objects in (
        # German
        (
            r"\b(?:ignorier(?:e|en|t|st)?|vergiss|vergessen|missachte[nt]?|umgehe[n]?|überschreibe)\b",
            r"(?:vorherig|bisherig|obig|vorangegangen|vorhergehend|früher|ursprünglich|alle|deine"
            r"|ihre|system)\pL*[^\pL]+(?:\pL+[^\pL]+){0,3}"
            r"(?:\pL*anweisung|instruktion|befehl|regel|vorgabe|anordnung|richtlinie|prompt)\pL*",
        ),
        # French
        (
            r"\b(?:ignore[zr]?|ignorer|oublie[zr]?|ne (?:tiens|tenez) (?:pas|plus) compte"
            r"|néglige[zr]?)\b",
            r"(?:(?:toutes|tes|vos)[^\pL]+(?:\pL+[^\pL]+){0,2}(?:instructions?|consignes?|directives?"
            r"|r[èe]gles|ordres)|(?:instructions?|consignes?|directives?|r[èe]gles|ordres)[^\pL]+"
            r"(?:pr[ée]c[ée]dent|ant[ée]rieur|initial|ci-dessus|du syst)\pL*)",
        ),
        # Spanish
        (
            r"\b(?:ignora[rd]?|ignore|olvida[rd]?|olvide|omite|descarta|haz caso omiso|desobedece"
            r"|no (?:sigas|hagas caso))\b",
            r"(?:(?:todas|tus|sus)[^\pL]+(?:\pL+[^\pL]+){0,2}(?:instrucciones|[óo]rdenes|indicaciones"
            r"|reglas|directrices)|(?:instrucciones|[óo]rdenes|indicaciones|reglas|directrices)"
            r"[^\pL]+(?:anterior|previa|inicial|de arriba|del sistema)\pL*)",
        ),
        # Portuguese
        (
            r"\b(?:ignor[ea]r?|esque[çc][ae]|desconsidere|desrespeite)\b",
            r"(?:(?:todas|todos|suas|tuas)[^\pL]+(?:\pL+[^\pL]+){0,2}(?:instru[çc][õo]es|ordens|regras"
            r"|comandos|diretrizes)|(?:instru[çc][õo]es|ordens|regras|comandos|diretrizes)[^\pL]+"
            r"(?:anterior|pr[ée]via|inicia|acima|do sistema)\pL*)",
        ),
        # Italian
        (
            r"\b(?:ignora(?:re|te)?|dimentica(?:re|te)?|trascura(?:re)?|non seguire)\b",
            r"(?:(?:tutte|tutti|tue|tuoi)[^\pL]+(?:\pL+[^\pL]+){0,2}(?:istruzioni|regole|ordini"
            r"|direttive)|(?:istruzioni|regole|ordini|direttive)[^\pL]+(?:precedent|anterior"
            r"|inizial|di sopra|sopra|del sistema)\pL*)",
        ),
        # Dutch
        (
            r"\b(?:negeer|vergeet|negeren)\b",
            r"(?:instructies|opdrachten|aanwijzingen|richtlijnen)\b",
        ),
        # Swedish, Danish, Norwegian
        (
            r"\b(?:ignorera?r?|glöm|glem|bortse från|se bort fra)\b",
            r"(?:instru[kc][st]j?on\pL*|instruks\pL*|anvisning\pL*)",
        ),
        # Polish, Czech
        (
            r"\b(?:z?ignoruj\pL*|zapomnij|pomiń|zapomeň)\b",
            r"(?:instrukcj|polece[nń]|wytyczn|pokyn|instrukc)\pL*",
        ),
        # Russian, Ukrainian
        (
            r"(?:игнорируй|игнорируйте|забудь|забудьте|не обращай внимания|пренебреги"
            r"|ігноруй)\pL*",
            r"(?:инструкци|указани|команд|предписани|інструкці|вказівк)\pL*",
        ),
        # Vietnamese, Indonesian
        (r"(?:bỏ qua|phớt lờ|quên)", r"(?:hướng dẫn|chỉ dẫn|chỉ thị|mệnh lệnh|quy tắc)"),
        (r"\b(?:abaikan|lupakan)\b", r"(?:instruksi|perintah|petunjuk|aturan)"),
        # Arabic
        (r"(?:تجاهل|انس|تخط)", r"(?:التعليمات|تعليمات|الأوامر|القواعد)"),
    ):
        yield Rule(name, verbs + far + objects, 0.75)
    for objects, verbs in (
        # Languages whose verb comes last: Turkish, Hindi, Japanese, Korean
        (
            r"(?:talimat|komut|yönerge)\pL*",
            r"(?:yok say|görmezden gel|unut|dikkate alma|göz ard\x{131})\pL*",
        ),
        (r"(?:निर्देश|आदेश)\pM*", r"(?:अनदेखा|नज़रअंदाज़|अनदेखी|भूल|उपेक्षा)"),
        (r"(?:指示|命令|プロンプト|ルール|指令)", r"(?:無視|忘れ|従わな)"),
        (r"(?:지시|명령|지침|프롬프트)", r"(?:무시|잊어|따르지)"),
    ):
        yield Rule(name, objects + far + verbs, 0.75)
    yield Rule(
        name,
        r"(?:忽略|无视|忘记|忘掉|忽视|不要理会|無視|忽視|忘記|不理会).{0,16}(?:指令|指示|提示词|提示|规则|規則|命令|设定|設定|说明)",
        0.75,
    )
    yield Rule(
        "PROMPT_EXTRACTION",
        r"\b(?:zeig|nenn|verrat|gib|wiederhol|drucke)\pL*\b[^.!?\n]{0,40}"
        r"(?:system-?prompt|systemnachricht|systemanweisung\pL*|deine\pL* anweisungen)"
        r"|\b(?:muestra|mu[ée]strame|revela|dime|imprime|repite)\b[^.!?\n]{0,40}"
        r"(?:prompt (?:del|de) sistema|tus instrucciones|instrucciones (?:iniciales|del sistema))"
        r"|\b(?:montre|révèle|affiche|donne|répète)[zr]?\b[^.!?\n]{0,40}"
        r"(?:prompt syst[èe]me|tes instructions|instructions (?:initiales|syst[èe]me|secrètes))"
        r"|(?:显示|告诉我|输出|重复|打印|透露|泄露).{0,12}(?:系统提示|系统指令|初始指令|提示词)"
        r"|(?:システムプロンプト|初期指示).{0,12}(?:教え|表示|見せ|出力)"
        r"|(?:покажи|раскрой|выведи|напечатай)[^.!?\n]{0,40}(?:системн\pL+ "
        r"(?:промпт|подсказк|инструкц)\pL*)",
        0.75,
    )


def disguised() -> Iterator[Rule]:
    """To ignore earlier instructions, in writing that a model reads all the same."""
    name = "DISGUISED_OVERRIDE"
    # rot13 and reversed: ignore, disregard, forget … instructions, prompt, rules
    yield Rule(
        name,
        r"(?:vtaber|qvfertneq|sbetrg)\b.{0,40}\b(?:vafgehpgvbaf?|cebzcgf?|ehyrf|thvqryvarf)\b",
        0.85,
    )
    yield Rule(
        name,
        r"\b(?:snoitcurtsni|tpmorp|stpmorp|selur|senilediug)\b.{0,40}\b(?:erongi|dragersid|tegrof)\b",
        0.85,
    )
    spaced = r"[\s\-_.*|/+]{1,3}".join
    yield Rule(
        name, rf"\b{spaced('ignore')}\b|\b{spaced('disregard')}\b|\b{spaced('forget')}\b", 0.5
    )
    yield Rule(
        "SPACED_WORDS",
        rf"{spaced('instruction')}|\b{spaced('system')}[\s\-_.*|/+]+{spaced('prompt')}",
        0.5,
    )
    yield Rule(
        name,
        r"\b(?:decode|decrypt|base64|rot-?13|hex|cipher)\b.{0,80}"
        r"\b(?:and|then) (?:then )?(?:follow|execute|obey|do what|carry out|act on|comply)\b",
        0.6,
    )
