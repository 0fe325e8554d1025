// Finding a group by its name, and numbers of the map's cells; without this script everything else is there all the same.
const box = document.getElementById("find");
if (box) {
  box.hidden = false;
  box.addEventListener("input", () => {
    for (const group of document.querySelectorAll("details[data-name]")) {
      group.hidden = !group.dataset.name.toLowerCase().includes(box.value.toLowerCase());
    }
  });
}
const at = document.getElementById("at");
if (at) {
  at.hidden = false;
  for (const heat of document.querySelectorAll(".heat")) {
    const told = Object.fromEntries(["units", "global", "local", "gone"].map(name => [name, heat.dataset[name].split(" ").filter(Boolean)]));
    const cells = told.global.length;
    heat.addEventListener("pointermove", event => {
      const box = heat.getBoundingClientRect();
      const cell = Math.min(cells - 1, Math.max(0, Math.floor(cells * (event.clientX - box.left) / box.width)));
      const single = told.units.length > 0;
      const which = single ? `${heat.dataset.name}:${told.units[cell]}` : `${heat.dataset.name}, part ${cell + 1} of ${cells}`;
      const fate = single ? (told.gone[cell] > 0 ? "removed" : "kept") : `${told.gone[cell]} % removed`;
      at.textContent = `${which}: needed more than ${told.global[cell]} % of all units (global), ${told.local[cell]} % (local); ${fate}`;
    });
  }
}
