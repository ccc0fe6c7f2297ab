"""Sentences of each language of the multilingual models."""

SENTENCES: dict[str, tuple[str, ...]] = {
    "ar": ("مرحبا بالعالم.", "كيف حالك اليوم؟", "قرأتُ كتابًا جميلًا، ثم نمتُ.", "الساعة ٥ مساءً؛ هيا!", "لا أعرف"),
    "da": ("Hej med dig.", "Hvad hedder du?", "Æbler, øl og ål er dyrt, f.eks. i dag.", "Klokken er 5!", "Vi ses på fredag"),
    "de": ("Guten Morgen.", "Wie geht es dir?", "Über Größe, z. B. von Straßen, spricht man.", "Am 3. Mai: los!", "„Ja“, sagte sie"),
    "el": ("Καλημέρα σας.", "Τι κάνεις;", "Ο γάτος μου, ο Άρης, κοιμάται.", "Είναι 5 η ώρα!", "Δεν ξέρω τίποτα"),
    "en": ("Good morning.", "How are you?", "They're there, aren't they; naïve café.", "It's 5 p.m. on Jan. 3rd!", "I don't know"),
    "es": ("Buenos días.", "¿Cómo estás?", "El niño comió piñas, según mamá.", "¡Son las 5!", "No lo sé"),
    "fi": ("Hyvää huomenta.", "Mitä kuuluu?", "Äiti söi jäätelöä, mutta isä ei.", "Kello on 5!", "En tiedä"),
    "fr": ("Bonjour à tous.", "Ça va ?", "L'œuvre d'été, « déjà vu », où est-elle ?", "Il est 5 h !", "Je ne sais pas"),
    "he": ("שלום עולם.", "מה שלומך היום?", "קראתי ספר יפה, ואז ישנתי.", "השעה 5!", "אני לא יודע"),
    "hi": ("नमस्ते दुनिया।", "आप कैसे हैं?", "मैंने किताब पढ़ी, फिर सो गया।", "पाँच बजे हैं!", "मुझे नहीं पता"),
    "it": ("Buongiorno a tutti.", "Come stai?", "La città è più bella, perché c'è luce.", "Sono le 5!", "Non lo so"),
    "ja": ("こんにちは。", "元気ですか？", "今日は東京へ行きます、カメラと。", "５時です！", "母は花屋で平和な葉書を買った"),
    "ko": ("안녕하세요.", "잘 지내세요?", "오늘 서울에 갑니다, 친구와.", "다섯 시!", "  값을 모르겠어요 "),
    "ms": ("Selamat pagi.", "Apa khabar?", "Saya membaca buku, kemudian tidur.", "Pukul 5!", "Saya tidak tahu"),
    "nl": ("Goedemorgen.", "Hoe gaat het?", "Eén zee-egel, 's avonds, zei ze.", "Het is 5 uur!", "Ik weet het niet"),
    "no": ("God morgen.", "Hvordan går det?", "Æ, ø og å, f.eks. på tur.", "Klokken er 5!", "Jeg vet ikke"),
    "pl": ("Dzień dobry.", "Jak się masz?", "Zażółć gęślą jaźń, proszę.", "Jest 5!", "Nie wiem"),
    "pt": ("Bom dia.", "Como você está?", "A ação não é só coração, né?", "São 5 horas!", "Não sei"),
    "ru": ("Доброе утро.", "Как дела?", "Ёжик съел яблоко, потом он уснул.", "Сейчас 5 часов!", "Я не знаю этого"),
    "sv": ("God morgon.", "Hur mår du?", "Åtta äpplen, och öl.", "Klockan är 5!", "Jag vet inte"),
    "sw": ("Habari za asubuhi.", "Hujambo?", "Nilisoma kitabu, kisha nikalala.", "Saa 5!", "Sijui"),
    "tr": ("Günaydın.", "Nasılsın?", "İstanbul'da ılık çay, şöyle güzel.", "Saat 5!", "Bilmiyorum ĞÜŞİÖÇ"),
    "zh": ("你好。", "今天天气好吗？", "我日日看明月，朋友萌！", "５点，Go!", "昌晶 字 ABC"),
}  # fmt: skip


def texts_of(language: str) -> list[str]:
    """Ten texts of a language: sentences, in capitals, joined, and with odd blanks and signs."""
    lines = SENTENCES[language]
    return [
        *lines,
        " ".join(lines),
        lines[0].upper(),
        "".join(lines[:3]),
        f"“{lines[1]}” — {lines[2]}…",
        f" {lines[3]}\t{lines[4]}\n",
    ]
