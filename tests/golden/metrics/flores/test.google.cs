&quot;Nyní máme 4měsíční myši, které jsou nediabetické, které bývaly diabetické,&quot; dodal.
Dr. Ehud Ur, profesor medicíny na Dalhousie University v Halifaxu v Novém Skotsku a předseda klinické a vědecké divize Kanadské diabetické asociace varoval, že výzkum je stále v počátcích.
Stejně jako někteří jiní odborníci je skeptický ohledně toho, zda lze diabetes vyléčit, a poznamenává, že tato zjištění nemají žádný význam pro lidi, kteří již mají diabetes 1.
V pondělí Sara Daniusová, stálá tajemnice Nobelova výboru pro literaturu při Švédské akademii, během rozhlasového pořadu na švédském rádiu Sveriges Radio veřejně oznámila, že výbor, který se nemohl spojit přímo s Bobem Dylanem ohledně získání Nobelovy ceny za literaturu za rok 2016, opustil jeho úsilí ho dosáhnout.
Danius řekl: &quot;Právě teď neděláme nic. Zavolal jsem a poslal e-maily jeho nejbližšímu spolupracovníkovi a dostal jsem velmi přátelské odpovědi. Pro tuto chvíli to určitě stačí.&quot;
Dříve, generální ředitel společnosti Ring, Jamie Siminoff, poznamenal, že společnost začala, když jeho zvonek nebyl slyšet z jeho obchodu v garáži.
Postavil WiFi zvonek, řekl.
Siminoff řekl, že prodeje vzrostly po jeho vystoupení v roce 2013 v epizodě Shark Tank, kde panel show odmítl financovat startup.
Na konci roku 2017 se Siminoff objevil na nákupním televizním kanálu QVC.
Ring také urovnal soudní spor s konkurenční bezpečnostní společností ADT Corporation.
I když se zdá, že jedna experimentální vakcína dokáže snížit úmrtnost na ebolu, až dosud nebylo jasně prokázáno, že by žádné léky byly vhodné pro léčbu existující infekce.
Jeden koktejl protilátek, ZMapp, se zpočátku ukázal jako slibný v této oblasti, ale formální studie ukázaly, že má menší přínos, než se očekávalo při prevenci smrti.
Ve studii PALM sloužil ZMapp jako kontrola, což znamená, že jej vědci použili jako výchozí a porovnávali s ním tři další léčby.
USA Gymnastics podporuje dopis olympijského výboru Spojených států a akceptuje absolutní potřebu olympijské rodiny podporovat bezpečné prostředí pro všechny naše sportovce.
Souhlasíme s prohlášením USOC, že zájmům našich sportovců a klubů a jejich sportu může lépe posloužit posunem vpřed se smysluplnými změnami v rámci naší organizace, spíše než decertifikací.
USA Gymnastics podporuje nezávislé vyšetřování, které může objasnit, jak mohlo být zneužití podílu, který tak odvážně popsali pozůstalí Larryho Nassara, tak dlouho neodhaleno, a zahrnuje všechny nutné a vhodné změny.
USA Gymnastics a USOC mají stejný cíl – učinit sport gymnastiky a dalších sportů co nejbezpečnějšími, aby mohli následovat své sny v bezpečném, pozitivním a zplnomocněném prostředí.
Během 60. let pracoval Brzezinski pro Johna F. Kennedyho jako jeho poradce a poté pro administrativu Lyndona B. Johnsona.
Během výběrových řízení v roce 1976 radil Carterovi v oblasti zahraniční politiky, poté sloužil jako poradce pro národní bezpečnost (NSA) v letech 1977 až 1981, když vystřídal Henryho Kissingera.
Jako NSA pomáhal Carterovi při diplomatickém vyřizování světových záležitostí, jako jsou Camp David Accords, 1978; normalizace vztahů mezi USA a Čínou na konci 70. let; íránská revoluce, která vedla k íránské krizi rukojmích, 1979; a sovětská invaze do Afghánistánu, 1979.
Film s Ryanem Goslingem a Emmou Stone získal nominace ve všech hlavních kategoriích.
Gosling a Stone získali nominace na nejlepšího herce a herečku.
Mezi další nominace patří nejlepší film, režie, kamera, kostýmní výprava, filmový střih, původní skóre, produkční design, střih zvuku, mix zvuku a původní scénář.
Dvě písně z filmu, Audition (The Fools Who Dream) a City of Stars, získaly nominace na nejlepší původní píseň. Studio Lionsgate získalo 26 nominací — více než kterékoli jiné studio.
Prezident Spojených států Donald Trump v neděli pozdě v prohlášení prostřednictvím tiskového tajemníka oznámil, že američtí vojáci opustí Sýrii.
Oznámení bylo učiněno poté, co Trump telefonoval s tureckým prezidentem Recepem Tayyipem Erdoğanem.
Turecko také převezme střežení zajatých bojovníků ISIS, které evropské státy odmítly repatriovat, jak se uvádí v prohlášení.
To nejen potvrzuje, že alespoň někteří dinosauři měli peří, což je teorie již rozšířená, ale poskytuje podrobnosti, které fosilie obecně nemohou, jako je barva a trojrozměrné uspořádání.
. Vědci tvrdí, že opeření tohoto zvířete bylo nahoře kaštanově hnědé a spodní strana byla bledá nebo karotenoidně zbarvená.
Nález také poskytuje pohled na vývoj peří u ptáků.
Vzhledem k tomu, že dinosauří peří nemají dobře vyvinutý stvol, nazývaný vřetena, ale mají jiné rysy peří – ostny a ostny – vědci odvodili, že vřetena byla pravděpodobně pozdějším evolučním vývojem než tyto ostatní rysy.
Struktura peří naznačuje, že nebyla používána za letu, ale spíše pro regulaci teploty nebo zobrazení. Vědci navrhli, že i když se jedná o ocas mladého dinosaura, vzorek ukazuje peří dospělého, nikoli chmýří kuřátka.
Vědci navrhli, že i když se jedná o ocas mladého dinosaura, vzorek ukazuje peří dospělého, nikoli chmýří kuřátka.
Bomba v autě odpálená na policejním ředitelství v tureckém Gaziantepu včera ráno zabila dva policisty a zranila více než dvacet dalších lidí.
Úřad guvernéra uvedl, že devatenáct ze zraněných byli policisté.
Policie uvedla, že podezřívá z odpovědnosti za útok údajného militantu Daesh (ISIL).
Zjistili, že Slunce funguje na stejných základních principech jako jiné hvězdy: Bylo zjištěno, že aktivita všech hvězd v systému je řízena jejich svítivostí, jejich rotací a ničím jiným.
Svítivost a rotace se používají společně k určení Rossbyho čísla hvězdy, které souvisí s tokem plazmy.
Čím menší je Rossbyho číslo, tím je hvězda méně aktivní s ohledem na magnetické zvraty.
Během své cesty se Iwasaki při mnoha příležitostech dostal do problémů.
