"use strict";
// Tables that sort, filter and save, and figures that save; other scripts of the page find them in window.nilatent.
window.nilatent = (() => {
  const PART = 100;
  const MISSING = "–";
  const PRINT_DPI = 300;
  const CSS_DPI = 96;

  // Marks that turn the direction of writing would turn what stands after them as well.
  const visible = (value) => String(value).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

  const save = (name, content, type) => {
    const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
    const link = Object.assign(document.createElement("a"), { href: address, download: fileName(name) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };
  const fileName = (name) => String(name).replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._-]+/, "").slice(0, 120) || "file";

  const button = (text, click) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", click);
    return made;
  };

  // A spreadsheet takes a cell that begins with one of these for a formula. Numbers are numbers and stay as they are.
  const FORMULA = /^[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r]/;
  const cellOf = (value) => {
    const text = String(value);
    const kept = (FORMULA.test(text) ? "'" : "") + text.replace(/[\t\r\n\v\f\u0085\u2028\u2029]+/g, " ");
    return kept.includes('"') ? `"${kept.replace(/"/g, '""')}"` : kept;
  };
  const tsv = (heads, rows) =>
    [heads.map(cellOf), ...rows.map((row) => row.map((cell) => cellToTsv(cell)))].map((row) => row.join("\t")).join("\n") + "\n";
  const cellToTsv = (cell) => {
    if (cell.key !== undefined) return String(cell.key);
    return cell.text === "" || cell.text === MISSING ? "n/a" : cellOf(cell.text);
  };

  const empty = (cell) => cell.key === undefined && (cell.text === "" || cell.text === MISSING);
  const compare = (a, b) =>
    a.key !== undefined && b.key !== undefined ? a.key - b.key : a.text.localeCompare(b.text, undefined, { numeric: true });

  const cellsOf = (row) =>
    [...row.cells].map((cell) => ({
      text: cell.textContent.trim(),
      key: cell.dataset.key === undefined ? undefined : Number(cell.dataset.key),
    }));

  const rowOf = (cells, numeric) => {
    const row = document.createElement("tr");
    cells.forEach((cell, position) => {
      const made = document.createElement(position ? "td" : "th");
      if (!position) made.scope = "row";
      made.className = numeric[position] ? "number" : cell.text.length <= 30 ? "short" : "long";
      made.textContent = visible(cell.text);
      row.append(made);
    });
    return row;
  };

  // What a table holds, apart from what of it is in the document: a browser is slow with thousands of rows.
  const live = (table, given) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((head) => head.textContent.trim());
    const numeric = heads.map((head) => head.classList.contains("number"));
    const all = given ?? [...body.rows].map((row) => ({ cells: cellsOf(row), row }));
    const state = { direction: 1, column: -1, filter: "", chosen: null, limit: PART };
    const box = table.closest(".sheet");
    const count = box.querySelector(".count");
    box.querySelector("[data-part]")?.remove();
    const more = button("Show more rows", () => { state.limit += 5 * PART; draw(); });
    const onRow = [];

    const left = () => {
      let rows = all;
      if (state.chosen) rows = rows.filter((_, position) => state.chosen.has(position));
      if (state.filter) rows = rows.filter(({ cells }) => cells.some((cell) => cell.text.toLocaleLowerCase().includes(state.filter)));
      if (state.column < 0) return rows;
      const at = ({ cells }) => cells[state.column];
      const known = rows.filter((row) => !empty(at(row))).sort((a, b) => state.direction * compare(at(a), at(b)));
      return [...known, ...rows.filter((row) => empty(at(row)))];
    };

    const draw = () => {
      const rows = left();
      const shown = given ? rows.slice(0, state.limit) : rows;
      for (const one of shown) {
        if (one.row) continue;
        one.row = rowOf(one.cells, numeric);
        onRow.forEach((act) => act(one));
      }
      body.replaceChildren(...shown.map((one) => one.row));
      more.hidden = shown.length === rows.length;
      const of = rows.length === all.length ? `${all.length} rows` : `${rows.length} of ${all.length} rows`;
      if (count) count.textContent = shown.length < rows.length ? `${of}, the first ${shown.length} shown` : of;
    };

    heads.forEach((head, position) => {
      if (!table.hasAttribute("data-sortable")) return;
      const sorter = button("", () => {
        state.direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        state.column = position;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", state.direction === 1 ? "ascending" : "descending");
        draw();
      });
      sorter.append(...head.childNodes);
      head.append(sorter);
    });
    box.querySelector("input[data-filter]")?.addEventListener("input", (event) => {
      state.filter = event.target.value.trim().toLocaleLowerCase();
      state.limit = PART;
      draw();
    });
    const saved = document.createElement("p");
    saved.className = "save";
    saved.append(more, button("Save as TSV", () => save(`${table.id}.tsv`, tsv(names, left().map(({ cells }) => cells)), "text/tab-separated-values")));
    box.append(saved);
    if (given) draw();
    else more.hidden = true;
    return {
      eachRow: (act) => { onRow.push(act); all.filter((one) => one.row).forEach(act); },
      choose: (positions) => { state.chosen = positions; state.limit = PART; draw(); },
    };
  };

  const tables = new Map();
  const unpacked = (rows) =>
    rows.map((row) => ({ cells: row.map((cell) => (Array.isArray(cell) ? { text: cell[0], key: cell[1] } : { text: cell })) }));
  for (const table of document.querySelectorAll(".sheet table")) {
    if (!table.tHead.rows[0].cells.length) continue;
    const rows = table.hasAttribute("data-paged") ? unpacked(JSON.parse(document.getElementById(`${table.id}-rows`).textContent)) : undefined;
    tables.set(table.id, live(table, rows));
  }

  // The copy in the page follows a dark page; the one that is saved is for paper.
  const drawing = (image) => {
    const bytes = Uint8Array.from(atob(image.src.slice(image.src.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    return new TextDecoder().decode(bytes).replace(/<style>@media \(prefers-color-scheme: dark\)[^<]*<\/style>/, "");
  };
  const savePng = async (image, name) => {
    const address = URL.createObjectURL(new Blob([drawing(image)], { type: "image/svg+xml" }));
    const picture = Object.assign(new Image(), { src: address });
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = Math.round((image.width_css * PRINT_DPI) / CSS_DPI);
    canvas.height = Math.round((image.height_css * PRINT_DPI) / CSS_DPI);
    const context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(address);
    canvas.toBlob((blob) => save(`${name}.png`, blob));
  };
  for (const image of document.querySelectorAll("figure[data-name] img")) {
    const name = image.closest("figure").dataset.name;
    image.width_css = Number(image.getAttribute("width"));
    image.height_css = Number(image.getAttribute("height"));
    const saved = document.createElement("span");
    saved.className = "save";
    saved.append(
      button("Save as SVG", () => save(`${name}.svg`, drawing(image), "image/svg+xml")),
      button("PNG, 300 dpi", () => savePng(image, name)),
    );
    image.closest("figure").querySelector("figcaption").append(" ", saved);
  }

  return { visible, save, button, live, tables };
})();
