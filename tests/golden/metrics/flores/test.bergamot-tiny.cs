"Nyní máme 4-měsíční myši, které jsou nediabetické, které bývaly diabetici," dodal.
Doktor. Ehud Ur, profesor medicíny na Dalhousie University v Halifaxu v Novém Skotsku a předseda klinické a vědecké divize Kanadské asociace diabetu varoval, že výzkum je stále v počátcích.
Stejně jako někteří další odborníci je skeptický k tomu, zda lze diabet dia diadukt vyléčit, a poznamenává, že tato zjištění nemají žádný význam pro lidi, kteří již mají cukrovku 1. typu.
V pondělí Sara Daniusová, stálá sekretářka Nobelovy komise pro literaturu ve Švédské akademii, veřejně oznámila během rozhlasového rozhlasu na Sveriges Radio ve Švédsku, že výbor, neschopný oslovit Boba Dylana přímo o získání Nobelovy ceny za literaturu v roce 2016, opustil své úsilí o jeho dosažení.
Danius řekl: "Právě teď neděláme nic. Volal jsem a posílal e-maily jeho nejbližšímu spolupracovníkovi a obdržel jsem velmi přátelské odpovědi. Prozatím to jistě stačí."
Dříve ředitel Ringu Jamie Siminoff poznamenal, že společnost začala, když jeho zvonek nebyl slyšitelný z jeho obchodu v jeho garáži.
Postavil zvonek na WiFi, řekl.
Siminoff řekl, že prodeje vzrostly po jeho vystoupení v roce 2013 v epizodě Shark Tank, kde show panel odmítl financovat startup.
Na konci roku 2017 se Siminoff objevil na nákupním televizním kanálu QVC.
Ring také urovnal žalobu se konkurenční bezpečnostní společností ADT Corporation.
Zatímco jedna experimentální vakcína se zdá být schopna snížit úmrtnost na ebolu, až dosud nebyly žádné léky jasně prokázány vhodné pro léčbu stávající infekce.
Jeden protilátkový koktejl, ZMapp, zpočátku ukázal slib v oboru, ale formální studie ukázaly, že měl menší přínos, než bylo požadováno při prevenci smrti.
Ve studii PALM sloužil ZMapp jako kontrola, což znamená, že vědci ji používali jako výchozí bod a porovnali s ní tři další léčby.
USA Gymnastika podporuje dopis olympijského výboru Spojených států a přijímá absolutní potřebu olympijské rodiny na podporu bezpečného prostředí pro všechny naše sportovce.
Souhlasíme s prohlášením USOC, že zájmy našich sportovců a klubů a jejich sportu mohou lépe sloužit tím, že se posunuly se smysluplnými změnami v rámci naší organizace, spíše než decertifikaci.
Americká gymnastika podporuje nezávislé vyšetřování, které může posvítit na to, jak zneužívání podílu tak odvážně popsaných pozůstalými Larryho Nassara mohlo být nezjištěno tak dlouho a přijalo jakékoli nezbytné a vhodné změny.
USA Gymnastika a USOC mají stejný cíl - činí sport gymnastiky a dalších, co nejbezpečnější pro sportovce, aby následovali své sny v bezpečném, pozitivním a posíleném prostředí.
Po celá šedesátá léta pracoval Brzezinski pro Johna F. Kennedy jako poradce a pak Lyndon B. Johnsonova administrativa.
Během výběru v roce 1976 radil Carterovi v oblasti zahraniční politiky, poté sloužil jako poradce pro národní bezpečnost (NSA) v letech 1977 až 1981, nahradil Henryho Kissingera.
Jako NSA pomáhal Carterovi při diplomatickém zacházení se světovými záležitostmi, jako jsou dohody z Camp Davidu, 1978; normalizace vztahů mezi USA a Čínou, pomyslela koncem 70. let; íránská revoluce, která vedla k íránské krizi s rukojmími v roce 1979; a sovětské invazi v Afghánistánu v roce 1979.
Film s Ryanem Goslingem a Emmou Stone získal nominace ve všech hlavních kategoriích.
Gosling a Stone získali nominace na nejlepšího herce a herečku.
Mezi další nominace patří nejlepší film, režisér, kinematografie, kostýmní design, editace filmů, Original Score, Production Design, Sound Editing, Sound Mixing a Original Screenplay.
Dvě písně z filmu, Konkurz (The Fools Who Dream) a City of Stars, získaly nominace na nejlepší původní píseň. Studio Lionsgate získalo 26 nominací – více než kterékoli jiné studio.
Prezident Spojených států Donald Trump v neděli v prohlášení předneseném prostřednictvím tiskového mluvčího oznámil, že američtí vojáci opustí Sýrii.
Oznámení bylo učiněno poté, co Trump vedl telefonický rozhovor s tureckým prezidentem Recepem Tayyipem Erdoğanem.
Turecko by také převzalo střežení zajatých bojovníků ISIS, které, jak se uvádí, evropské národy odmítly repatriovat.
To nejen potvrzuje, že alespoň někteří dinosauři měli peří, což je teorie, která je již rozšířená, ale poskytuje detaily, které fosilie obecně nemohou, jako je barva a trojrozměrné uspořádání.
. Vědci tvrdí, že opeření tohoto zvířete bylo na vrcholu hnědém s bledou nebo karotenoidně zbarvenou spodní stranou.
Nález také poskytuje vhled do vývoje peří u ptáků.
Vzhledem k tomu, že dinosauří peří nemá dobře vyvinutou hřídel, zvanou rakise, ale mají jiné rysy peří - ostny a barby - vědci zjistili, že rakise byla pravděpodobně později evolučním vývojem, který tyto jiné rysy.
Struktura peří naznačuje, že nebyly použity za letu, ale spíše pro regulaci teploty nebo zobrazení. Vědci naznačili, že i když se jedná o ocas mladého dinosaura, vzorek ukazuje opeření dospělých a ne mládě dolů.
Vědci naznačili, že i když se jedná o ocas mladého dinosaura, vzorek ukazuje opeření dospělých a ne mládě dolů.
Bomba v autě odpálená včera ráno na policejním velitelství v tureckém Gaziantepu zabila dva policisty a dalších více než dvacet lidí zranila.
Úřad guvernéra uvedl, že devatenáct zraněných byli policisté.
Policie uvedla, že má podezření na údajného militanta Daesh (ISIL) z odpovědnosti za útok.
Zjistili, že Slunce funguje na stejných základních principech jako ostatní hvězdy: Aktivitu všech hvězd v systému bylo zjištěno, že je poháněna jejich svítivostí, jejich rotací a ničím jiným.
Svítivost a otáčení se používají společně k určení hvězdného čísla Rossby, které souvisí s průtokem plazmatu.
čím menší je Rossby číslo, tím méně aktivní je hvězda s ohledem na magnetické zvraty.
Během své cesty se Iwasaki při mnoha příležitostech dostal do problémů.
