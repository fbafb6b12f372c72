"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const list = by("scans");
  const rows = [...list.querySelectorAll(".row[data-scan]")];
  const sort = by("sort");
  const turn = by("order");
  const boxes = { flagged: by("flagged"), scan: by("scan-lines"), template: by("template-lines"), large: by("large") };
  const find = by("find");
  const heads = [...document.querySelectorAll("[data-sort]")];
  let order = "down";

  const names = new Intl.Collator(undefined, { numeric: true });
  const chosen = () => sort.selectedOptions[0];
  const usual = () => (sort.value === "farthest" ? "down" : chosen().dataset.order || "up");
  const first = new Map(rows.map((row, place) => [row, place]));

  const number = (row) => {
    const cell = row.querySelector(`[data-m="${chosen().dataset.number}"]`);
    return cell ? Number(cell.dataset.key) : NaN;
  };

  const arrange = () => {
    const sign = order === "up" ? 1 : -1;
    let compare;
    if (sort.value === "farthest") {
      compare = (a, b) => -sign * (first.get(a) - first.get(b));
    } else if (sort.value === "scan") {
      compare = (a, b) => sign * names.compare(a.dataset.scan, b.dataset.scan);
    } else {
      const values = new Map(rows.map((row) => [row, number(row)]));
      compare = (a, b) => {
        const [one, other] = [values.get(a), values.get(b)];
        // Scans without the value come last in both directions.
        if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other);
        return sign * (one - other) || first.get(a) - first.get(b);
      };
    }
    list.append(...[...rows].sort(compare));
    turn.textContent = order === "up" ? "↑" : "↓";
    turn.title = order === "up" ? "lowest first" : "highest first";
    for (const head of heads) head.setAttribute("aria-pressed", String(head.dataset.sort === sort.value));
    for (const cell of list.querySelectorAll(".sorted")) cell.classList.remove("sorted");
    for (const cell of list.querySelectorAll(`[data-m="${chosen().dataset.number}"]`)) cell.classList.add("sorted");
  };

  const words = new Map(rows.map((row) => [row, row.querySelector("h3").textContent.toLocaleLowerCase()]));
  const choose = () => {
    const wanted = find.value.trim().toLocaleLowerCase();
    let left = 0;
    for (const row of rows) {
      const shown = words.get(row).includes(wanted) && (!boxes.flagged.checked || row.classList.contains("flagged"));
      row.hidden = !shown;
      left += shown;
    }
    by("count").textContent = left === rows.length ? `${left} scans` : `${left} of ${rows.length} scans`;
    by("nothing").hidden = left > 0;
  };

  const look = () => {
    document.body.classList.toggle("no-scan-lines", !boxes.scan.checked);
    document.body.classList.toggle("no-template-lines", !boxes.template.checked);
    document.body.classList.toggle("big", boxes.large.checked);
  };

  const remember = () => {
    const state = new URLSearchParams();
    if (sort.value !== "farthest") state.set("sort", sort.value);
    if (order !== usual()) state.set("order", order);
    if (boxes.flagged.checked) state.set("flagged", "1");
    if (find.value) state.set("find", find.value);
    if (!boxes.scan.checked) state.set("scan", "0");
    if (!boxes.template.checked) state.set("template", "0");
    if (boxes.large.checked) state.set("large", "1");
    const text = state.toString();
    // Some browsers refuse this to pages that were opened from a folder; the page works without.
    try { window.history.replaceState(null, "", text ? `#${text}` : window.location.pathname + window.location.search); } catch { /* stays as it is */ }
  };

  const recall = () => {
    const state = new URLSearchParams(window.location.hash.slice(1));
    const wanted = state.get("sort");
    sort.value = [...sort.options].some((option) => option.value === wanted) ? wanted : "farthest";
    order = ["up", "down"].includes(state.get("order")) ? state.get("order") : usual();
    boxes.flagged.checked = state.get("flagged") === "1";
    find.value = state.get("find") ?? "";
    boxes.scan.checked = state.get("scan") !== "0";
    boxes.template.checked = state.get("template") !== "0";
    boxes.large.checked = state.get("large") === "1";
    arrange();
    choose();
    look();
  };

  const sorted = () => { arrange(); remember(); };
  sort.addEventListener("change", () => { order = usual(); sorted(); });
  turn.addEventListener("click", () => { order = order === "up" ? "down" : "up"; sorted(); });
  for (const head of heads) {
    head.addEventListener("click", () => {
      if (sort.value === head.dataset.sort) order = order === "up" ? "down" : "up";
      else { sort.value = head.dataset.sort; order = usual(); }
      sorted();
    });
  }
  boxes.flagged.addEventListener("change", () => { choose(); remember(); });
  find.addEventListener("input", () => { choose(); remember(); });
  for (const name of ["scan", "template", "large"]) boxes[name].addEventListener("change", () => { look(); remember(); });
  window.addEventListener("hashchange", recall);

  const step = (by) => {
    const shown = [...list.querySelectorAll(".row[data-scan]:not([hidden])")];
    const now = shown.indexOf(document.activeElement?.closest(".row"));
    const next = shown[Math.min(Math.max(now + by, 0), shown.length - 1)];
    next?.focus();
    next?.scrollIntoView({ block: "start" });
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
    if (event.key === "o") {
      const on = !(boxes.scan.checked || boxes.template.checked);
      boxes.scan.checked = on;
      boxes.template.checked = on;
      look();
      remember();
    } else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  recall();
})();
