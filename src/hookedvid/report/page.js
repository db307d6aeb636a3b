// Tables sort by a click on a head: up, down, as they were. Numbers by their value; what is none stands last.
const valueOf = (cell) => {
  const text = cell.textContent.trim();
  const number = text.match(/^[-−+]?\d[\d.,]*(e[-+]?\d+)?/i);
  return number ? Number(number[0].replace("−", "-").replaceAll(",", "")) : text;
};
const compare = (a, b) =>
  typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true })) : typeof a === "number" ? -1 : 1;

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const before = [...body.rows];
  const rows = before.filter((row) => !row.classList.contains("group"));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      for (const other of heads) other.removeAttribute("aria-sort");
      if (was === "descending") return body.replaceChildren(...before);
      const sign = was === "ascending" ? -1 : 1;
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const values = new Map(rows.map((row) => [row, valueOf(row.cells[i])]));
      const known = (v) => v !== "" && v !== "–";
      const order = (a, b) => known(b) - known(a) || sign * compare(a, b);
      body.replaceChildren(...rows.toSorted((a, b) => order(values.get(a), values.get(b))));
    });
  });
}
// On paper everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
document.body.dataset.ready = "yes";
