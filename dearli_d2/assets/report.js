// A click on the head of a column sorts the table by it: names from A on, numbers from the highest on. A second click turns it round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.querySelectorAll("thead th");
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const rising = column === 0 ? now !== "ascending" : now === "descending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const order = (a, b) => column === 0 ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
    const body = table.tBodies[0];
    [...body.rows].sort((a, b) => (rising ? 1 : -1) * order(a, b)).forEach((row) => body.append(row));
  }));
}
