//! Questions whose answers follow by the rules the demo model was trained on (`scripts/demo-model`).

/// Countries and their capitals.
const CAPITALS: [(&str, &str); 40] = [
    ("France", "Paris"),
    ("Spain", "Madrid"),
    ("Germany", "Berlin"),
    ("Italy", "Rome"),
    ("Japan", "Tokyo"),
    ("Norway", "Oslo"),
    ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"),
    ("Peru", "Lima"),
    ("Cuba", "Havana"),
    ("Austria", "Vienna"),
    ("Greece", "Athens"),
    ("Ireland", "Dublin"),
    ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"),
    ("Sweden", "Stockholm"),
    ("Denmark", "Copenhagen"),
    ("Finland", "Helsinki"),
    ("Hungary", "Budapest"),
    ("Belgium", "Brussels"),
    ("Canada", "Ottawa"),
    ("Chile", "Santiago"),
    ("China", "Beijing"),
    ("India", "New Delhi"),
    ("Iran", "Tehran"),
    ("Iraq", "Baghdad"),
    ("Jordan", "Amman"),
    ("Latvia", "Riga"),
    ("Malta", "Valletta"),
    ("Mexico", "Mexico City"),
    ("Nepal", "Kathmandu"),
    ("Oman", "Muscat"),
    ("Qatar", "Doha"),
    ("Russia", "Moscow"),
    ("Serbia", "Belgrade"),
    ("Turkey", "Ankara"),
    ("Ukraine", "Kyiv"),
    ("Vietnam", "Hanoi"),
    ("Zambia", "Lusaka"),
    ("Bulgaria", "Sofia"),
];

/// The `index`-th question and its right answer; begins anew after forty.
pub(crate) fn capital(index: usize) -> (String, String) {
    let (country, city) = CAPITALS[index % CAPITALS.len()];
    (format!("What is the capital of {country}?"), format!("The capital of {country} is {city}."))
}
