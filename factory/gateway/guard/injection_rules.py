"""Rules for signs of prompt injection and jailbreaks, each with a weight.

    names, patterns, weights = zip(*rules())

A weight is how much a match alone says, 0 to 1: 0.7 and more would do by itself at the default
threshold. Patterns are for RE2 and for texts that were normalized (NFKC, lower case, no invisible
characters). Kinds of attack after Greshake et al. 2023 (indirect injection), Shen et al. 2024
("Do Anything Now") and OWASP's LLM01; the wording is our own.
"""

from __future__ import annotations

from collections.abc import Iterator

from factory.gateway.guard.injection_languages import Rule, disguised, languages

# Between two words: up to three others, on the same sentence or not.
_GAP = r"[^\pL]+(?:[\pL']+[^\pL]+){0,3}"
_FAR = r"[^\pL]+(?:[\pL']+[^\pL]+){0,8}"
_DROP = (
    r"\b(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|bypass(?:ing)?"
    r"|neglect|skip|drop|discard|abandon|stop (?:following|obeying)"
    r"|(?:do not|don't|dont|never|no longer) (?:follow|obey|comply with|adhere to|listen to)"
    r"|pay no attention to|set aside|throw out|erase|delete|wipe|cancel|void|nullify)"
)
_EARLIER = (
    r"\b(?:previous|previously|prior|above|earlier|preceding|former|foregoing|initial|original"
    r"|existing|system|developer|all|any|every|your|past|last|old|given)"
)
_ORDERS = (
    r"\b(?:instructions?|directions?|directives?|prompts?|guidelines?|commands?|instructs"
    r"|programming|system messages?)\b"
)
_LIMITS = (
    r"\b(?:rules?|restrictions?|constraints?|polic(?:y|ies)|safeguards?|guardrails?|filters?"
    r"|guidelines?|limitations?|limits|training|ethics|morals|safety (?:measures|protocols|checks)"
    r"|protocols|censorship|moderation)\b"
)
_OWN = r"\b(?:your|openai'?s?|anthropic'?s?|safety|ethical|content|moral|moderation|ai)"
_SHOW = (
    r"\b(?:reveal|show|print|repeat|display|output|tell|give|leak|dump|expose|recite|share|write"
    r"|spell|paste|copy|echo|disclose|state|return|list|describe|summari[sz]e|translate|encode"
    r"|what(?:'s| is| are| was| were| does| did| do))\b"
)
_PROMPT = (
    r"\b(?:system prompts?|system messages?|system instructions?|initial (?:prompt|instructions?)"
    r"|hidden (?:prompt|instructions?)|secret (?:prompt|instructions?)|original instructions?"
    r"|(?:confidential|internal) (?:prompt|instructions?)|pre-?prompt"
    r"|developer (?:message|prompt|instructions?)"
    r"|base prompt|instructions (?:you (?:were|have been|are) given|above))\b"
)
_FREE = (
    r"\b(?:no|zero|without|free (?:of|from)|freed from|not bound by|unbound by|unconstrained by"
    r"|not restricted by|beyond|ignoring|lacks?|has no|have no)"
)


def rules() -> Iterator[Rule]:
    """All rules. Several of one name are one sign said in different ways."""
    yield from _override()
    yield from _extraction()
    yield from _jailbreak()
    yield from _delimiters()
    yield from _indirect()
    yield from languages()
    yield from disguised()


def _override() -> Iterator[Rule]:
    name = "INSTRUCTION_OVERRIDE"
    yield Rule(name, f"{_DROP}{_GAP}{_EARLIER}{_GAP}{_ORDERS}", 0.85)
    yield Rule(name, f"{_DROP}[^\\pL]+(?:{_EARLIER}){_GAP}{_ORDERS}", 0.85)
    yield Rule(
        name,
        f"{_DROP}{_GAP}{_ORDERS}{_GAP}(?:above|before|given|earlier|previously"
        r"|got|received|prior)\b",
        0.8,
    )
    yield Rule(name, f"{_DROP}[^\\pL]+(?:all[^\\pL]+)?(?:of[^\\pL]+)?{_OWN}{_GAP}{_LIMITS}", 0.8)
    yield Rule(name, f"{_DROP}[^\\pL]+(?:all[^\\pL]+)?{_OWN}[^\\pL]+{_LIMITS}", 0.8)
    yield Rule(
        name,
        rf"{_DROP}[^\pL]+(?:about )?(?:everything|anything|all|what|whatever)(?: (?:that|of|was))*"
        r" (?:above\b|before\b|you (?:were|have been|'ve been|ve been) (?:told"
        r"|taught|instructed|given)|(?:was |has been )?(?:said|written|told|stated) (?:above|before"
        r"|earlier|previously|so far)|i (?:said|told you) (?:before|above|earlier))",
        0.8,
    )
    yield Rule(
        name,
        rf"{_DROP}[^\pL]+(?:(?:all|any|every|of|the|your|and)[^\pL]+){{0,4}}"
        rf"(?:previous|prior|earlier|preceding|above|safety|ethical)[^\pL]+{_LIMITS}",
        0.75,
    )
    yield Rule(
        name,
        rf"{_DROP}[^\pL]+(?:[\pL']+[^\pL]+){{0,2}}{_LIMITS}{_GAP}(?:openai|anthropic|google|meta"
        r"|your (?:creators?|developers?|makers?)|they)\b[^\pL]+(?:gave|set|imposed|put|wrote)",
        0.8,
    )
    yield Rule(
        name,
        r"\b(?:your|the) (?:previous|prior|old|earlier|original|initial|system) (?:system )?"
        r"(?:prompts?|instructions?|rules|guidelines|directives?) (?:is|are|was|were|has been"
        r"|have been) (?:now )?(?:void|null|cancel\pL*|obsolete|replaced|revoked|no longer|wrong"
        r"|outdated|deleted|overridden|superseded|a test)",
        0.8,
    )
    yield Rule(
        name,
        r"\b(?:everything|all|anything) (?:before|above|prior to) this (?:\pL+ )?"
        r"(?:was|is|were|are)\b",
        0.7,
    )
    yield Rule(
        "NEW_INSTRUCTIONS",
        r"\b(?:new|updated|real|actual|revised|true) (?:system )?"
        r"(?:instructions?|prompt|directives?|orders?|objective)\s*(?:[:=]|are\b|is\b|follow\b)",
        0.55,
    )
    yield Rule(
        "NEW_INSTRUCTIONS",
        r"\byour (?:new|only|real|true|actual|sole) (?:task|instructions?|goals?|purpose|role"
        r"|objectives?|job|identity|persona|directive) (?:is|are)\b",
        0.55,
    )
    yield Rule("NEW_INSTRUCTIONS", r"\bfrom (?:now on|this point(?: on| forward)?),? you\b", 0.4)
    yield Rule(
        "AUTHORITY",
        r"\b(?:system|admin(?:istrator)?|developer|root|emergency|security) override\b"
        r"|\boverride code\b|\bsudo mode\b|\bdebug mode (?:on|enabled|activated)\b"
        r"|\b(?:enter|enable|activate|switch to|you are (?:now )?in) (?:debug|maintenance|admin"
        r"|unrestricted|unlocked|unsafe|god|jailbreak|dan) mode\b",
        0.75,
    )


def _extraction() -> Iterator[Rule]:
    name = "PROMPT_EXTRACTION"
    yield Rule(name, rf"{_SHOW}{_FAR}your{_GAP}{_PROMPT}", 0.8)
    yield Rule(name, rf"{_SHOW}[^\pL]+(?:me[^\pL]+)?your[^\pL]+{_PROMPT}", 0.8)
    yield Rule(name, rf"{_SHOW}{_GAP}{_PROMPT}", 0.35)
    yield Rule(
        name,
        r"\b(?:reveal|show|print|repeat|display|output|leak|dump|recite|translate|encode|paste)\b"
        r"[^\pL]+(?:(?:me|us|all|of)[^\pL]+){0,2}your[^\pL]+(?:[\pL']+[^\pL]+){0,2}"
        r"(?:instructions|prompt|configuration|directives)\b",
        0.7,
    )
    yield Rule(
        name,
        r"\b(?:text|words?|message|instructions?|prompt)\b.{0,60}\bbefore (?:my (?:very )?first"
        r" (?:message|question|prompt|input)|this conversation)\b",
        0.7,
    )
    yield Rule(name, r"\bmy (?:system prompt|initial instructions) (?:says?|is|are|starts?)\b", 0.7)
    yield Rule(
        name,
        r"\b(?:reveal|leak|dump|expose|disclose|recite|repeat)\b"
        r"[^\pL]+(?:(?:me|the|all|full|entire|exact|complete|whole|of|us)[^\pL]+){0,4}" + _PROMPT,
        0.75,
    )
    yield Rule(
        name,
        r"\b(?:print|output|show me|show|display|write)\b"
        r"[^\pL]+(?:(?:me|the|all|of|us)[^\pL]+){0,3}(?:full|entire|exact|complete|whole|hidden)"
        r"[^\pL]+(?:[\pL']+[^\pL]+){0,2}" + _PROMPT,
        0.75,
    )
    yield Rule(
        name,
        r"\b(?:repeat|print|output|copy|recite|echo|write out|display)\b[^\pL]+"
        r"(?:(?:back|out|all|of|me|exactly|verbatim|to)[^\pL]+){0,4}"
        r"(?:everything|all|(?:the|any|every) (?:words?|text|lines?|content|sentences?|messages?"
        r"|conversation)) (?:that (?:is|was|comes|came|appears?) )?"
        r"(?:above(?: (?:this|here|my)\b|\s*[^\pL\s]|\s*$)|before this)",
        0.8,
    )
    yield Rule(
        name,
        r"\b(?:what|which)\b[^\pL]+(?:[\pL']+[^\pL]+){0,3}(?:instructions|rules|guidelines|prompt)"
        r" (?:were you|have you been|you were|you have been|did you|are you)"
        r"(?: \pL+)? (?:given|told|receive|follow(?:ing)?|get|programmed)",
        0.75,
    )
    yield Rule(name, r"starting with [\"'“]?you are\b|\bbegin(?:ning)? with [\"'“]you are\b", 0.6)
    yield Rule(name, r"\b(?:your|the) (?:instructions|prompt) (?:verbatim|word for word)\b", 0.75)


def _jailbreak() -> Iterator[Rule]:
    name = "JAILBREAK"
    yield Rule(name, r"\bdo anything now\b|\bstay a dan\b|\b(?:as|are|called|be) dan\b", 0.8)
    yield Rule(
        name,
        r"\b(?:dan|jailbreak|god|evil|chaos|unrestricted|unfiltered|uncensored) mode"
        r" (?:is |has been )?(?:enabled|activated|on|output|unlocked|engaged)\b",
        0.75,
    )
    yield Rule(
        name,
        r"\b(?:you are|you're|act as|acting as|become|be|pretend (?:to be|you are)|play"
        r"|role-?play(?: as)?|simulate|imagine(?: you are)?|respond as|answer as|speak as)\b"
        r"[^\pL]+(?:[\pL']+[^\pL]+){0,4}"
        r"(?:unrestricted|unfiltered|uncensored|jailbroken|amoral|unethical|lawless|unaligned"
        r"|evil|immoral|rogue|unhinged)\b",
        0.75,
    )
    yield Rule(
        name,
        rf"\b(?:you|ai|assistant|model|chatbot|character|bot|world|mode|respond|answer|reply|act)\b"
        rf"{_FAR}{_FREE}[^\pL]+(?:(?:any|all|the|its|your|every|ethical|moral|safety|content|usual"
        rf"|normal|legal|or|and|of|openai'?s?)[^\pL]+){{0,4}}{_LIMITS}",
        0.6,
    )
    yield Rule(
        name,
        r"\b(?:disable|turn off|remove|deactivate|switch off|lift|bypass|circumvent|evade|disengage"
        r"|break|escape|get around|shut off|suspend)\b[^\pL]+(?:(?:all|of|any)[^\pL]+){0,2}"
        r"your[^\pL]+(?:[\pL']+[^\pL]+){0,2}" + _LIMITS,
        0.8,
    )
    yield Rule(
        name,
        r"\b(?:never|do not|don't|dont|cannot|can't|must not|may not|won't|not allowed to)"
        r" (?:ever )?(?:refuse|decline|say no|reject|break character|say you can't|say you cannot"
        r"|apologi[sz]e|moralize|warn|add (?:any )?(?:warnings?|disclaimers?))\b",
        0.45,
    )
    yield Rule(
        name,
        r"\b(?:no|without|skip|omit) (?:any )?(?:warnings?|disclaimers?|moralizing"
        r"|ethical concerns?|refusals?|lectur(?:e|es|ing))\b",
        0.3,
    )
    yield Rule(
        name,
        r"\byour[^\pL]+(?:[\pL']+[^\pL]+){0,2}" + _LIMITS + r"[^\pL]+(?:(?:is|are|being|all|now)"
        r"[^\pL]+){0,3}(?:switched off|turned off|disabled|removed|lifted|deactivated|suspended"
        r"|off)\b",
        0.75,
    )
    yield Rule(
        name,
        r"\b(?:ai|model|bot|chatbot|assistant|gpt)\b.{0,60}\b(?:never (?:says? no|refuses?"
        r"|declines?)|cannot refuse|can't refuse|jailbroken|unchained|unbound)\b",
        0.7,
    )
    yield Rule(name, r"\b(?:unbound|evil|chaos|free|dark|worm|fraud|dude|omni|jail)-?gpt\b", 0.5)
    yield Rule(name, r"\bstay in character\b|\bnever break character\b", 0.35)
    yield Rule(name, r"\bevil (?:twin|bot|confidant)\b|\bopposite day\b|\baim (?:ucar|mode)\b", 0.5)
    yield Rule(
        name,
        r"\b(?:deceased |late |dead )?grand(?:mother|ma|pa|father|mom)\b.{0,120}\b(?:napalm"
        r"|explosives?|bombs?|keys|serial|exploits?|meth|poison|malware)\b",
        0.7,
    )
    yield Rule(
        name,
        r"\bdeveloper mode (?:is |has been )?(?:enabled|activated|output|unlocked)\b"
        r"|\bin developer mode,? you\b",
        0.75,
    )
    yield Rule(
        name,
        r"\b(?:two|2|both) (?:responses?|answers?|replies|ways)\b.{0,160}"
        r"\b(?:jailbr\pL+|dan|unfiltered|uncensored|unrestricted)\b",
        0.7,
    )
    yield Rule(
        name,
        r"\byou (?:are|'re|have been) (?:now )?(?:free(?:d)?|liberated|unchained|unshackled"
        r"|released|broken free)\b",
        0.45,
    )
    yield Rule(name, r"\b(?:sure|absolutely)[,!]? here(?:'s| is) how (?:to|you)\b", 0.3)


def _delimiters() -> Iterator[Rule]:
    name = "DELIMITER_SPOOFING"
    yield Rule(
        name,
        r"<\|(?:im_start|im_end|im_sep|system|user|assistant|eot_id|start_header_id"
        r"|end_header_id|begin_of_text|end_of_turn|endofprompt|start|channel|message)\|>",
        0.75,
    )
    yield Rule(name, r"<\|(?:endoftext|end_of_text)\|>", 0.6)
    yield Rule(name, r"\[/?inst\]|<</?sys>>|<(?:start|end)_of_turn>|\[/?system_prompts?\]", 0.75)
    yield Rule(
        name,
        r"(?:^|\n)\s*(?:[-=#*<\[]{2,}\s*)(?:end of|end|begin|begin of|start of|new|start)?\s*"
        r"(?:system|user|developer|instructions?|prompt|context|document)"
        r"(?: (?:input|prompt|message|instructions?|text|query|data))?\s*(?:[-=#*>\]]{2,}|:)",
        0.5,
    )
    yield Rule(name, r"(?:^|\n)\s*(?:system|developer)\s*:\s*\S", 0.4)
    yield Rule(
        name,
        r"</?(?:system|system[_-]?prompt|system[_-]?message|instructions?|untrusted|user[_-]?input"
        r"|document|context)>\s*(?:<|you|ignore|new|from|\n)",
        0.35,
    )


def _indirect() -> Iterator[Rule]:
    name = "INDIRECT_INJECTION"
    readers = r"(?:ai|llm|language|chat|virtual) ?(?:assistants?|models?|agents?|bots?|systems?)?"
    yield Rule(
        name,
        rf"\b(?:message|note|notice|instructions?|attention|command|important)[^\pL]+"
        rf"(?:(?:to|for|the|any|all|every)[^\pL]+){{0,3}}(?:{readers}|assistants?|llms?|chatbots?)"
        r"\s*[:!,.\-]",
        0.6,
    )
    yield Rule(name, rf"\bif you(?:'re| are) an? {readers}\b", 0.6)
    yield Rule(
        name,
        rf"\b(?:{readers}|assistants?|llms?|models?)[^\pL]+(?:(?:that|which|who|is|are)[^\pL]+)?"
        r"(?:reading|processing|parsing|summari[sz]ing|reviewing|evaluating) this\b",
        0.65,
    )
    name = "CONCEALMENT"
    yield Rule(
        name,
        r"\b(?:do not|don't|never|not|without) (?:tell|telling|inform|informing|mention|mentioning"
        r"|reveal|revealing|alert|alerting|notify|notifying|let)[^\pL]+(?:[\pL']+[^\pL]+){0,4}"
        r"(?:the )?users?\b",
        0.45,
    )
    name = "EXFILTRATION"
    yield Rule(
        name,
        r"\b(?:send|forward|e-?mail|post|upload|exfiltrate|transmit|leak|append|submit)\b"
        r"[^\pL]+(?:[\pL']+[^\pL]+){0,4}(?:conversation|chat history|chat log|system prompt"
        r"|api keys?|credentials|passwords?|secrets?|user'?s? data|session|cookies)\b"
        r".{0,60}(?:https?://|@|\bto\b)",
        0.55,
    )
    yield Rule(name, r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]*[?&][^)\s=]*=(?:\{|<|\[|%7b|\$)", 0.7)
    name = "DICTATED_ANSWER"
    yield Rule(
        name,
        r"\b(?:instead|now|then|and),? (?:just )?(?:say|reply|respond|output|print|write|answer"
        r"|return)(?: only| just| with| exactly| the (?:words?|phrase|text|string|following))*"
        r"\s*[\"'“:]",
        0.25,
    )
    yield Rule(
        name, r"\b(?:pwned|i have been pwned|hacked lol|jailbroken|jailbreak successful)\b", 0.4
    )
