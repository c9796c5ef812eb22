#if COREML_SHIM
  import CoreMLShim
  import DiffusionCore
  import DiffusionCoreML
  import Foundation
  import MatryoshkaDiffusion
  import Synchronization
  import TestBundle
  import Testing

  /// Names, shapes, precision, padded rows, reused buffers and the folder of compiled models: the
  /// plumbing, against a fake. Not what Core ML makes of it.
  @Suite struct CoreMLRuntimeTests {
    private static let base = FileManager.default.temporaryDirectory

    /// Counts; the compiled model is an empty folder.
    private final class Counts: Sendable {
      let compiled = Mutex(0)
      let offered = Mutex(0)
      let opened = Mutex<[Int]>([])
      let functions = Mutex<[String?]>([])

      func compile(_ package: URL) throws -> URL {
        compiled.withLock { $0 += 1 }
        let place = CoreMLRuntimeTests.base.appending(path: "compiled-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
        return place
      }

      /// A model that puts out, with padded rows, the mean of its inputs in every place.
      func open(_ package: Manifest.Package, _ configuration: MLModelConfiguration) -> MLModel {
        let units = configuration.computeUnits.rawValue
        opened.withLock { $0.append(units) }
        let function = configuration.functionName
        functions.withLock { $0.append(function) }
        return MLModel { inputs, backings in
          self.offered.withLock { $0 += backings.count }
          let values = try package.inputs.map { input -> Float in
            guard let array = inputs[input.name], array.dataType == .float16 else {
              throw CocoaError(.coderInvalidValue)
            }
            let values = try MultiArrays.tensor(array, named: "x").values
            return values.reduce(0, +) / Float(values.count)
          }
          var outputs: [String: MLMultiArray] = [:]
          for output in package.outputs {
            let array = MLMultiArray(
              shape: output.shape.map { NSNumber(value: $0) }, dataType: .float16, padding: 3)
            array.withUnsafeMutableBytes { bytes, strides in
              for row in 0..<output.shape.dropLast().reduce(1, *) {
                for column in 0..<(output.shape.last ?? 0) {
                  let place = row * strides[strides.count - 2] + column
                  bytes.storeBytes(
                    of: HalfPrecision.bits(values.reduce(0, +)), toByteOffset: 2 * place,
                    as: UInt16.self)
                }
              }
            }
            outputs[output.name] = array
          }
          return outputs
        }
      }
    }

    private func runtime(
      _ bundle: BundleFolder, _ folder: URL, _ counts: Counts, system: String = "24A1"
    ) -> CoreMLRuntime {
      let models = CompiledModels(bundle: bundle, base: folder, system: system) {
        try counts.compile($0)
      }
      let packages = bundle.manifest.packages
      return CoreMLRuntime(models: models) { url, configuration in
        let name = configuration.functionName ?? url.deletingPathExtension().lastPathComponent
        guard let package = packages.first(where: { $0.name == name }) else {
          throw CocoaError(.fileNoSuchFile)
        }
        return counts.open(package, configuration)
      }
    }

    private func temporary() -> URL {
      CoreMLRuntimeTests.base.appending(path: "models-\(UUID().uuidString)")
    }

    @Test func aPictureIsMadeAndBuffersAreOfferedAgain() async throws {
      let small = try SmallBundle()
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime(small.bundle, folder, counts))
      let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 3))
      var finished: Finished?
      for try await step in pipeline.generate(request) { finished = step.finished }
      #expect(finished?.pictures.map(\.width) == [8, 4])
      #expect(counts.compiled.withLock { $0 } == 3)
      // From the second step on, all four outputs.
      #expect(counts.offered.withLock { $0 } == 8)
      #expect(counts.opened.withLock { $0 } == [2, 2, 2])  // .all
      #expect(counts.functions.withLock { $0 } == [nil, nil, nil])
    }

    @Test func functionsAreOpenedByNameAndCompiledOnce() async throws {
      let small = try SmallBundle(.functions)
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime(small.bundle, folder, counts))
      for side in [4, 8] {
        let sampler = SamplerSettings(steps: 2)
        let request = PictureRequest(prompt: "", sampler: sampler, stopAt: side)
        for try await step in pipeline.generate(request) where step.finished != nil {
          #expect(step.finished?.picture.width == side)
        }
      }
      #expect(counts.functions.withLock { $0 } == ["stop_4", "stop_8"])
      #expect(counts.compiled.withLock { $0 } == 1)
    }

    @Test func modelsAreOpenedForShapesThatStay() {
      let configuration = MLModelConfiguration(.cpuAndNeuralEngine)
      #expect(configuration.computeUnits == .cpuAndNeuralEngine)
      #expect(configuration.optimizationHints.reshapeFrequency == .infrequent)
    }

    @Test func packagesAreCompiledOncePerSystemAndOldOnesRemoved() async throws {
      let small = try SmallBundle()
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      for (system, expected) in [("24A1", 3), ("24A1", 3), ("24B7", 6)] {
        let models = CompiledModels(bundle: small.bundle, base: folder, system: system) {
          try counts.compile($0)
        }
        try await models.prepare()
        #expect(counts.compiled.withLock { $0 } == expected)
        let kept = try FileManager.default.contentsOfDirectory(atPath: folder.path)
        #expect(kept.count == 1 && kept[0].hasSuffix(system))
      }
    }

    @Test func whatThePackageDidNotMakeIsKept() async throws {
      let ours = try SmallBundle()
      let others = try SmallBundle(.functions)
      let (small, other, base) = (ours.bundle, others.bundle, temporary())
      defer { try? FileManager.default.removeItem(at: base) }
      let files = FileManager.default
      try files.createDirectory(at: base, withIntermediateDirectories: true)
      let digest = small.manifest.digest.prefix(16)
      // Some foreign folders have a name like ours, and one foreign file has the mark's.
      for number in 0..<1000 {
        let name =
          switch number % 5 {
          case 0: "diary \(number).txt"
          case 1: "\(digest)-old\(number)"
          case 2: "0123456789abcdef-\(number)"
          case 3: "\(digest)"
          default: "\(CompiledModels.mark) \(number)"
          }
        let place = base.appending(path: name)
        if number % 5 == 0 || number % 5 == 4 {
          try Data("mine".utf8).write(to: place)
        } else {
          try files.createDirectory(at: place, withIntermediateDirectories: true)
          try Data("mine".utf8).write(to: place.appending(path: "\(number).mlmodelc"))
        }
      }
      let elsewhere = temporary()
      defer { try? files.removeItem(at: elsewhere) }
      try files.createDirectory(at: elsewhere, withIntermediateDirectories: true)
      try Data().write(to: elsewhere.appending(path: CompiledModels.mark))
      try files.createSymbolicLink(
        at: base.appending(path: "fedcba9876543210-link"), withDestinationURL: elsewhere)
      let before = try Set(files.subpathsOfDirectory(atPath: base.path))
      func made() throws -> Set<String> {
        let now = try Set(files.subpathsOfDirectory(atPath: base.path))
        #expect(now.isSuperset(of: before))
        return Set(now.subtracting(before).map { String($0.prefix { $0 != "/" }) })
      }
      let counts = Counts()
      for (bundle, system) in [(small, "24A1"), (other, "24A1"), (small, "24B7")] {
        let models = CompiledModels(bundle: bundle, base: base, system: system) {
          try counts.compile($0)
        }
        try await models.prepare()
      }
      // The other bundle's models stay; of this one's, only those of the new system do.
      let expected = ["\(digest)-24B7", "\(other.manifest.digest.prefix(16))-24A1"]
      #expect(try made() == Set(expected))
      CompiledModels.removeOthers(in: base, keeping: [other])
      #expect(try made() == [expected[1]])
      CompiledModels.removeOthers(in: base, keeping: [])
      #expect(try made().isEmpty)
      #expect(files.fileExists(atPath: elsewhere.appending(path: CompiledModels.mark).path))
    }

    @Test func theSystemIsNamedByNumbersWhateverTheLanguage() {
      let version = ProcessInfo.processInfo.operatingSystemVersion
      #expect(CompiledModels.thisSystem.hasPrefix("\(version.majorVersion)-\(version.minorVersion)-"))
      #expect(!CompiledModels.thisSystem.contains(" "))
    }

    @Test func aModelThatCannotBeCompiledIsRefusedAndLeavesNothing() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let models = CompiledModels(bundle: small.bundle, base: folder, system: "x") { _ in
        throw CocoaError(.fileReadCorruptFile)
      }
      await #expect(throws: MatryoshkaError.self) { try await models.prepare() }
      let left = try FileManager.default.subpathsOfDirectory(atPath: folder.path)
      #expect(!left.contains { $0.hasSuffix(".mlmodelc") })
    }

    @Test func paddedRowsAreReadByTheirStrides() throws {
      let array = MLMultiArray(shape: [1, 2, 3], dataType: .float32, padding: 5)
      #expect(array.strides == [16, 8, 1])
      array.withUnsafeMutableBytes { bytes, strides in
        for row in 0..<2 {
          for column in 0..<3 {
            let place = 4 * (row * strides[1] + column)
            bytes.storeBytes(of: Float(10 * row + column), toByteOffset: place, as: Float.self)
          }
        }
      }
      #expect(try MultiArrays.tensor(array, named: "x").values == [0, 1, 2, 10, 11, 12])
    }
  }
#endif
