"use strict";
// Rows that are made from data get the link to the page of their subject, as those of the document have it.
(() => {
  const found = document.getElementById("subjects-table-links");
  if (!found) return;
  const links = JSON.parse(found.textContent);
  const rows = JSON.parse(document.getElementById("subjects-table-rows").textContent);
  const target = new Map(rows.map((row, position) => [row[0], links[position]]));
  window.nilatent.tables.get("subjects-table").eachRow(({ row, cells }) => {
    const link = Object.assign(document.createElement("a"), { href: target.get(cells[0].text) });
    link.append(...row.cells[0].childNodes);
    row.cells[0].append(link);
  });
})();
