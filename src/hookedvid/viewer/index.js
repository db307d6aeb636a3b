// Cards of the chosen family and outcome; the choice is in the address.

const filters = [...document.querySelectorAll("select")];
const cards = [...document.querySelectorAll(".card")];

function show() {
  const fits = (card, f) => !f.value || (f.id === "family" ? card.dataset.family === f.value : JSON.parse(card.dataset.outcome).includes(f.value));
  for (const card of cards) card.hidden = !filters.every((f) => fits(card, f));
  document.getElementById("n").textContent = `${cards.filter((c) => !c.hidden).length} shown`;
}

function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const f of filters) f.value = [...f.options].some((o) => o.value === said.get(f.id)) ? said.get(f.id) : "";
  show();
}

for (const f of filters) {
  f.onchange = () => {
    const said = filters.filter((x) => x.value).map((x) => [x.id, x.value]);
    history.replaceState(null, "", `#${new URLSearchParams(said)}`);
    show();
  };
}
window.addEventListener("hashchange", fromAddress);
fromAddress();
document.body.dataset.ready = "yes";
